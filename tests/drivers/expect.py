"""What the scripts in Python share."""

import asyncio


def same(found, expected, what):
    if found != expected:
        raise AssertionError(f"{what}: expected {expected!r}, found {found!r}")


async def refused(sqlstate, awaitable, what):
    """The database must refuse it with this SQLSTATE; returns the error."""
    try:
        await awaitable
    except Exception as error:
        same(getattr(error, "sqlstate", repr(error)), sqlstate, f"{what} ({error})")
        return error
    raise AssertionError(f"{what}: expected {sqlstate}, found success")


async def within(awaitable, what):
    """What must come, but may take its time on a busy machine."""
    try:
        return await asyncio.wait_for(awaitable, 30)
    except asyncio.TimeoutError:
        raise AssertionError(f"{what}: nothing came")


def told(part, error):
    return f"{part.__name__}: {type(error).__name__}: {error}"
