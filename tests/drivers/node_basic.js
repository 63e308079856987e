// What an application in Node.js relies on, with pg. Usage: node_basic.js URL
//
// Exits with 1 and a message at the first difference from PostgreSQL.

const assert = require('node:assert/strict')
const { Client, Pool } = require('pg')

const url = process.argv[2]
// Runs of this script do not meet.
const table = `node_${process.pid}`

async function refused(code, promise, what) {
  await assert.rejects(promise, (error) => {
    assert.equal(error.code, code, `${what}: ${error.message}`)
    return true
  }, what)
}

const parts = {
  async values(client) {
    const simple = await client.query("SELECT 1 AS one, 'a' AS letter")
    assert.deepEqual(simple.rows, [{ one: 1, letter: 'a' }])
    const row = [7, null, '', 'žluťoučký 🐘', Buffer.from([0, 255]), true]
    const text = 'SELECT $1::int, $2::text, $3::text, $4::text, $5::bytea, $6::bool'
    const extended = await client.query({ text, values: row, rowMode: 'array' })
    assert.deepEqual(extended.rows, [row])
    const several = await client.query('SELECT 1 AS a; SELECT 2 AS b')
    assert.deepEqual(several.map((result) => result.rows), [[{ a: 1 }], [{ b: 2 }]])
    const empty = await client.query('')
    assert.deepEqual(empty.rows, [])
    const many = await client.query('SELECT generate_series(1, $1::int)', [50000])
    assert.equal(many.rowCount, 50000)
  },

  async prepared(client) {
    for (let n = 0; n < 20; n++) {
      const { rows } = await client.query({ name: 'next', text: 'SELECT $1::int + 1 AS n', values: [n] })
      assert.deepEqual(rows, [{ n: n + 1 }])
    }
    // Another client may give the same name to another statement.
    const other = await connect()
    const { rows } = await other.query({ name: 'next', text: "SELECT 'other' AS n", values: [] })
    assert.deepEqual(rows, [{ n: 'other' }])
    const again = await client.query({ name: 'next', text: 'SELECT $1::int + 1 AS n', values: [41] })
    assert.deepEqual(again.rows, [{ n: 42 }])
    await other.end()
  },

  async transactions(client) {
    await client.query('BEGIN')
    await client.query(`INSERT INTO ${table} VALUES ($1, $2)`, [1, 'rolled back'])
    await client.query('ROLLBACK')
    await client.query('BEGIN')
    await client.query(`INSERT INTO ${table} VALUES ($1, $2)`, [2, 'kept'])
    await client.query('COMMIT')
    const { rows } = await client.query(`SELECT * FROM ${table}`)
    assert.deepEqual(rows, [{ id: 2, note: 'kept' }])
    for (let n = 0; n < 50; n++) {
      await client.query(`UPDATE ${table} SET note = $1`, [String(n)])
      const read = await client.query(`SELECT note FROM ${table}`)
      assert.deepEqual(read.rows, [{ note: String(n) }], 'own write')
    }
    await client.query(`DELETE FROM ${table}`)
  },

  async faults(client) {
    await refused('42601', client.query('SELEC 1'), 'syntax')
    await refused('42P01', client.query('SELECT * FROM no_such_table'), 'missing table')
    await refused('22012', client.query('SELECT 1 / $1::int', [0]), 'division by zero')
    await client.query(`INSERT INTO ${table} VALUES (1, 'first')`)
    await refused('23505', client.query(`INSERT INTO ${table} VALUES (1, 'second')`), 'unique violation')
    await client.query('BEGIN')
    await refused('22012', client.query('SELECT 1 / 0'), 'in a transaction')
    await refused('25P02', client.query('SELECT 1'), 'in a failed transaction')
    assert.equal((await client.query('COMMIT')).command, 'ROLLBACK')
    assert.equal((await client.query('SELECT 1 AS one')).rows[0].one, 1)
    await client.query(`DELETE FROM ${table}`)
  },

  // pg sends queued queries one by one; they must come back in order.
  async queued(client) {
    const queries = Array.from({ length: 100 }, (_, n) => client.query('SELECT $1::int AS n', [n]))
    const results = await Promise.all(queries)
    assert.deepEqual(results.map(({ rows }) => rows[0].n), Array.from({ length: 100 }, (_, n) => n))
  },

  async notices(client) {
    const notice = new Promise((resolve) => client.once('notice', resolve))
    await client.query("DO $$ BEGIN RAISE NOTICE 'ahoj'; END $$")
    assert.equal((await notice).message, 'ahoj')
  },

  async crowd() {
    const pool = new Pool({ connectionString: url, max: 20 })
    const one = async (n) => {
      const client = await pool.connect()
      try {
        await client.query('BEGIN')
        await client.query("SELECT set_config('pgweir_test.client', $1, true)", [String(n)])
        await client.query({ name: 'insert', text: `INSERT INTO ${table} VALUES ($1, $2)`, values: [1000 + n, String(n)] })
        const inside = await client.query("SELECT current_setting('pgweir_test.client') AS client")
        assert.deepEqual(inside.rows, [{ client: String(n) }])
        await client.query('COMMIT')
        const own = await client.query({ name: 'own', text: `SELECT note FROM ${table} WHERE id = $1`, values: [1000 + n] })
        assert.deepEqual(own.rows, [{ note: String(n) }], 'own row in the crowd')
      } finally {
        client.release()
      }
    }
    await Promise.all(Array.from({ length: 400 }, (_, n) => one(n)))
    assert.equal(pool.totalCount, 20)
    await pool.end()
  },
}

async function connect() {
  const client = new Client({ connectionString: url, connectionTimeoutMillis: 20000 })
  await client.connect()
  return client
}

async function main() {
  const client = await connect()
  await client.query(`CREATE TABLE ${table} (id int PRIMARY KEY, note text)`)
  try {
    for (const [name, part] of Object.entries(parts)) {
      try {
        await part(client)
      } catch (error) {
        throw new Error(`${name}: ${error.message}`)
      }
    }
  } finally {
    const last = await connect()
    await last.query(`DROP TABLE ${table}`)
    await last.end()
    await client.end()
  }
  console.log('pg: all as expected')
}

main().catch((error) => {
  console.error(error.message)
  process.exit(1)
})
