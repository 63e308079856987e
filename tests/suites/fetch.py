"""Gets suites, at run time and from package registries alone: nothing of theirs is in this repository."""

import glob
import os
import shutil
import subprocess
import sys

from servers import ROOT

STORE = os.path.join(ROOT, "target", "suites")
DEBIAN = "/etc/apt/sources.list.d/debian.sources"


def run(*command, **how):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **how)
    if done.returncode:
        raise SystemExit(f"suites: {' '.join(command)}:\n{done.stdout[-3000:]}")
    return done.stdout


def once(folder, fill):
    """Fills a folder of the store, unless an earlier run did; one that was cut short starts anew."""
    path = os.path.join(STORE, folder)
    if not os.path.isdir(path):
        partial = path + ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        fill(partial)
        os.rename(partial, path)
    return path


def venv(name, *packages):
    """A Python with these packages; returns its interpreter."""
    folder = os.path.join(STORE, f"{name}.venv")
    python = os.path.join(folder, "bin", "python")
    wanted = "\n".join(packages)
    mark = os.path.join(folder, ".installed")
    if not os.path.exists(mark) or open(mark).read() != wanted:
        run(sys.executable, "-m", "venv", "--clear", folder)
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages)
        with open(mark, "w") as file:
            file.write(wanted)
    return python


def sdist(package, version):
    """The unpacked source of a Python package."""
    def fill(folder):
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
            "-d", folder, f"{package}=={version}")
        unpack(folder)
    return the_only(once(f"{package}-{version}.sdist", fill))


def apt(*arguments, program="apt-get", **how):
    """apt with lists of its own, so that nothing of the system changes; sources come with the packages."""
    lists = os.path.join(STORE, "apt")
    parts = os.path.join(lists, "parts")
    if not os.path.isdir(parts):
        os.makedirs(os.path.join(lists, "lists", "partial"))
        os.makedirs(parts)
        with open(DEBIAN) as installed, open(os.path.join(parts, "own.sources"), "w") as own:
            own.write("\n".join(line.replace("deb", "deb deb-src") if line.startswith("Types:") else line
                                for line in installed.read().splitlines()) + "\n")
        apt("update", "-qq")
    options = ["Dir::Etc::SourceList=/dev/null", f"Dir::Etc::SourceParts={parts}", f"Dir::State::Lists={lists}/lists",
               "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]
    return run(program, *(part for option in options for part in ("-o", option)), *arguments, **how)


def debian_source(package, version):
    """The unpacked source of a Debian package, without Debian's patches."""
    def fill(folder):
        apt("source", "-qq", "--download-only", f"{package}={version}", cwd=folder)
        for debian in glob.glob(f"{folder}/*.debian.tar.*"):
            os.remove(debian)
        unpack(folder)
    return the_only(once(f"{package}-{version}.source", fill))


def debian_binary(package, version=None):
    """The unpacked files of a Debian package that is not installed."""
    def fill(folder):
        apt("download", "-qq", f"{package}={version}" if version else package, cwd=folder)
        unpack_debian(folder)
    return once(f"{package}-{version}.files" if version else f"{package}.files", fill)


def unpack_debian(folder):
    for archive in glob.glob(f"{folder}/*.deb"):
        run("dpkg", "-x", archive, folder)
        os.remove(archive)


def unpack(folder):
    for archive in glob.glob(f"{folder}/*.tar.*"):
        run("tar", "xf", archive, "-C", folder)
        os.remove(archive)


def the_only(folder):
    """The one folder in it."""
    inside = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    if len(inside) != 1:
        raise SystemExit(f"suites: {folder} has {len(inside)} folders; remove it and start again")
    return inside[0]
