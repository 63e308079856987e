// What an application in Node.js relies on, with postgres.js. Usage: postgresjs_basic.js URL
//
// Exits with 1 and a message at the first difference from PostgreSQL.

const assert = require('node:assert/strict')
const { Readable } = require('node:stream')
const { pipeline } = require('node:stream/promises')
const postgres = require('postgres')

const url = process.argv[2]
// Runs of this script do not meet.
const name = `postgresjs_${process.pid}`

const open = (options) => postgres(url, { max: 1, connect_timeout: 20, onnotice() {}, ...options })

async function refused(code, promise, what) {
  await assert.rejects(promise, (error) => {
    assert.equal(error.code, code, `${what}: ${error.message}`)
    return true
  }, what)
}

// What must come, but may take its time on a busy machine.
function within(promise, what) {
  let timer
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`${what}: nothing came`)), 30000)))
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

const parts = {
  async values(sql) {
    const moment = new Date('2024-02-29T12:30:00Z')
    const [row] = await sql`SELECT ${7}::int AS a, ${null}::text AS b, ${'žluťoučký 🐘'} AS c, ${Buffer.from([0, 255])}::bytea AS d,
      ${true}::bool AS e, ${moment}::timestamptz AS f, ${sql.json({ x: [1, null] })}::jsonb AS g, ${[1, 2]}::int[] AS h`
    const expected = { a: 7, b: null, c: 'žluťoučký 🐘', d: Buffer.from([0, 255]), e: true, f: moment, g: { x: [1, null] }, h: [1, 2] }
    assert.deepEqual({ ...row }, expected)
    const several = await sql`SELECT 1 AS a; SELECT 2 AS b`.simple()
    assert.deepEqual(several.map((rows) => ({ ...rows[0] })), [{ a: 1 }, { b: 2 }])
    assert.equal((await sql`SELECT generate_series(1, ${50000}::int)`).count, 50000)
    const [{ length }] = await sql`SELECT length(${'x'.repeat(3000000)}) AS length`
    assert.equal(length, 3000000)
    const described = await sql`SELECT ${1}::int AS a, now() AS b`.describe()
    assert.deepEqual(described.types, [23])
    assert.deepEqual(described.columns.map((c) => c.name), ['a', 'b'])
  },

  // The driver sends queries behind each other without waiting, each with its own Sync.
  async pipelined(sql) {
    const found = await Promise.all(Array.from({ length: 300 }, (_, n) => sql`SELECT ${n}::int AS n, ${String(n % 7)} AS t`))
    assert.deepEqual(found.map(([row]) => row.n), Array.from({ length: 300 }, (_, n) => n))
    const texts = await Promise.all(Array.from({ length: 100 }, (_, n) => sql.unsafe(`SELECT ${n} + $1::int AS n`, [1])))
    assert.deepEqual(texts.map(([row]) => row.n), Array.from({ length: 100 }, (_, n) => n + 1))
    // One that fails leaves those beside it alone.
    const mixed = await Promise.allSettled([0, 1, 2, 0, 5].map((n) => sql`SELECT 10 / ${n}::int AS n`))
    const told = mixed.map(({ value, reason }) => (value ? value[0].n : reason.code))
    assert.deepEqual(told, ['22012', 10, 5, '22012', 2])
  },

  async transactions(sql) {
    const kept = await sql.begin(async (tx) => {
      await tx`INSERT INTO ${tx(name)} VALUES (1, 'kept')`
      await tx.savepoint((sp) => sp`INSERT INTO ${sp(name)} VALUES (2, 'rolled back')`.then(() => { throw new Error('no') })).catch(() => {})
      return tx`SELECT id FROM ${tx(name)}`
    })
    assert.deepEqual(kept.map((row) => row.id), [1])
    const both = await sql.begin((tx) => [tx`UPDATE ${tx(name)} SET note = 'a'`, tx`SELECT note FROM ${tx(name)}`])
    assert.deepEqual(both[1].map((row) => row.note), ['a'])
    await refused('23505', sql.begin((tx) => tx`INSERT INTO ${tx(name)} VALUES (1, 'again')`), 'unique violation')
    await refused('25006', sql.begin('read only', (tx) => tx`INSERT INTO ${tx(name)} VALUES (9, '')`), 'read only')
    for (let n = 0; n < 50; n++) {
      await sql`UPDATE ${sql(name)} SET note = ${String(n)}`
      assert.equal((await sql`SELECT note FROM ${sql(name)}`)[0].note, String(n), 'own write')
    }
    await sql`DELETE FROM ${sql(name)}`
  },

  async helpers(sql) {
    const rows = Array.from({ length: 1000 }, (_, id) => ({ id, note: `n ${id}` }))
    const inserted = await sql`INSERT INTO ${sql(name)} ${sql(rows)} RETURNING id`
    assert.equal(inserted.length, 1000)
    const ids = [3, 5, 8]
    const found = await sql`SELECT id FROM ${sql(name)} WHERE id IN ${sql(ids)} ORDER BY id`
    assert.deepEqual(found.map((row) => row.id), ids)
    let sum = 0
    await sql`SELECT id FROM ${sql(name)}`.cursor(100, (part) => { sum += part.reduce((total, row) => total + row.id, 0) })
    assert.equal(sum, 499500, 'rows of a cursor')
    let seen = 0
    for await (const [row] of sql`SELECT id FROM ${sql(name)} ORDER BY id`.cursor()) {
      assert.equal(row.id, seen++)
      if (seen === 5) break // The driver closes the portal.
    }
    let each = 0
    await sql`SELECT id FROM ${sql(name)}`.forEach(() => each++)
    assert.equal(each, 1000)
    await sql`DELETE FROM ${sql(name)}`
  },

  async copies(sql) {
    const lines = Array.from({ length: 10000 }, (_, n) => `${n}\tročník ${n}\n`)
    await pipeline(Readable.from(lines), await sql`COPY ${sql(name)} FROM STDIN`.writable())
    assert.equal((await sql`SELECT count(*)::int AS n FROM ${sql(name)}`)[0].n, 10000)
    const out = []
    // No more than a stream buffers: beyond that the driver itself stands still, at Postgres too.
    for await (const chunk of await sql`COPY (SELECT * FROM ${sql(name)} ORDER BY id LIMIT 500) TO STDOUT`.readable()) out.push(chunk)
    assert.equal(Buffer.concat(out).toString(), lines.slice(0, 500).join(''))
    await sql`DELETE FROM ${sql(name)}`
  },

  async faults(sql) {
    await refused('42601', sql`SELEC 1`, 'syntax')
    await refused('42P01', sql`SELECT * FROM no_such_table`, 'missing table')
    await refused('22P02', sql`SELECT ${'x'}::text::int`, 'a wrong value')
    assert.equal((await sql`SELECT 1 AS one`)[0].one, 1)
  },

  async notifications(sql) {
    const channel = `Channel ${process.pid}`
    const heard = []
    let enough
    const all = new Promise((resolve) => (enough = resolve))
    const { unlisten } = await sql.listen(channel, (payload) => heard.push(payload) === 5 && enough())
    for (let n = 0; n < 5; n++) await sql.notify(channel, String(n))
    await within(all, 'notifications')
    assert.deepEqual(heard, ['0', '1', '2', '3', '4'])
    await unlisten()
    const notice = new Promise((resolve) => {
      const loud = open({ onnotice: (message) => resolve(message.message) })
      loud`DO $$ BEGIN RAISE NOTICE 'ahoj'; END $$`.then(() => loud.end())
    })
    assert.equal(await within(notice, 'a notice'), 'ahoj')
  },

  async session(sql) {
    const own = open({ connection: { search_path: 'pg_catalog', statement_timeout: 12345, application_name: 'its own' } })
    assert.equal((await own`SHOW search_path`)[0].search_path, 'pg_catalog')
    assert.equal((await own`SHOW statement_timeout`)[0].statement_timeout, '12345ms')
    assert.equal((await own`SHOW application_name`)[0].application_name, 'its own')
    await own`SET TimeZone = 'Asia/Tokyo'`
    assert.equal((await own`SHOW TimeZone`)[0].TimeZone, 'Asia/Tokyo')
    assert.equal(own.parameters.TimeZone ?? 'Asia/Tokyo', 'Asia/Tokyo')
    await own.end()
    assert.equal((await sql`SHOW search_path`)[0].search_path, '"$user", public')
    const reserved = await sql.reserve()
    await reserved`CREATE TEMPORARY TABLE own AS SELECT 1 AS a`
    assert.equal((await reserved`SELECT a FROM own`)[0].a, 1)
    await reserved`DROP TABLE own`
    reserved.release()
  },

  async cancels(sql) {
    const [{ here }] = await sql`SELECT pg_backend_pid() AS here`
    assert.equal(typeof here, 'number')
    const sleeping = sql`SELECT pg_sleep(60)`
    const settled = refused('57014', sleeping, 'cancel')
    setTimeout(() => sleeping.cancel(), 300)
    await within(settled, 'the cancelled query')
    assert.equal((await sql`SELECT 1 AS one`)[0].one, 1)
  },

  async crowd() {
    const pool = open({ max: 10 })
    const one = async (n) => {
      await pool.begin(async (tx) => {
        await tx`SELECT set_config('pgweir_test.client', ${String(n)}, true)`
        await tx`INSERT INTO ${tx(name)} VALUES (${1000 + n}, ${String(n)})`
        assert.equal((await tx`SELECT current_setting('pgweir_test.client') AS client`)[0].client, String(n))
      })
      // The pool's next connection is another session, which need not read at once what this one has written.
      const client = await pool.reserve()
      try {
        await client`UPDATE ${client(name)} SET note = note || '!' WHERE id = ${1000 + n}`
        const rows = await client`SELECT note FROM ${client(name)} WHERE id = ${1000 + n}`
        assert.equal(rows[0].note, `${n}!`)
      } finally {
        client.release()
      }
    }
    await Promise.all(Array.from({ length: 300 }, (_, n) => one(n)))
    await pool.end()
  },
}

async function main() {
  const sql = open()
  await sql`CREATE TABLE ${sql(name)} (id int PRIMARY KEY, note text)`
  try {
    for (const [what, part] of Object.entries(parts)) {
      try {
        await part(sql)
      } catch (error) {
        throw new Error(`${what}: ${error.message}`)
      }
    }
  } finally {
    const last = open()
    await last`DROP TABLE ${last(name)}`
    await last.end()
    await sql.end({ timeout: 5 })
  }
  console.log('postgres.js: all as expected')
}

main().catch((error) => {
  console.error(error.message)
  process.exit(1)
})
