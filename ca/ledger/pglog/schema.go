package pglog

// schema makes the tables if they are not there. Keys of documents are compared byte
// by byte. The lock keeps replicas that start together from making them at once.
const schema = `
SELECT pg_advisory_xact_lock(7238011);
CREATE TABLE IF NOT EXISTS writ_ledger_head (
	one  boolean PRIMARY KEY DEFAULT true CHECK (one),
	size bigint NOT NULL,
	edge bytea[] NOT NULL
);
INSERT INTO writ_ledger_head (size, edge) VALUES (0, '{}') ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS writ_ledger_entries (
	index     bigint PRIMARY KEY,
	leaf      bytea NOT NULL,
	hash      bytea NOT NULL,
	documents bytea,
	touches   text[]
);
CREATE INDEX IF NOT EXISTS writ_ledger_touches ON writ_ledger_entries (index) WHERE touches IS NOT NULL;
CREATE TABLE IF NOT EXISTS writ_ledger_documents (
	key     text COLLATE "C" PRIMARY KEY,
	value   bytea NOT NULL,
	version bigint NOT NULL
);`

// channel is what is notified of changes of documents. It is one for all schemas of a
// database: a notification of another one costs a look.
const channel = "writ_ledger"

// The statements of a commit.
const (
	lockHead     = `SELECT size, edge FROM writ_ledger_head FOR UPDATE`
	readVersions = `SELECT key, version FROM writ_ledger_documents WHERE key = ANY($1)`
	addEntries   = `INSERT INTO writ_ledger_entries (index, leaf, hash, documents, touches) VALUES ($1, $2, $3, $4, $5)`
	putDocument  = `INSERT INTO writ_ledger_documents (key, value, version) VALUES ($1, $2, $3)
		ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value, version = EXCLUDED.version`
	deleteDocuments = `DELETE FROM writ_ledger_documents WHERE key = ANY($1)`
	moveHead        = `UPDATE writ_ledger_head SET size = $1, edge = $2`
	notify          = `SELECT pg_notify('` + channel + `', '')`
)

// The statements that read.
const (
	readHead    = `SELECT size, edge FROM writ_ledger_head`
	readEntries = `SELECT index, leaf, documents, hash FROM writ_ledger_entries WHERE index >= $1 AND index < $2 ORDER BY index`
	readHashes  = `SELECT index, hash FROM writ_ledger_entries WHERE index >= $1 AND index < $2 ORDER BY index`
	readTouched = `SELECT touches FROM writ_ledger_entries WHERE index >= $1 AND touches IS NOT NULL`
	// With each document the entry that put it.
	documents    = `SELECT d.key, d.value, d.version, e.leaf, e.hash FROM writ_ledger_documents d LEFT JOIN writ_ledger_entries e ON e.index = d.version - 1 `
	getDocuments = documents + `WHERE d.key = ANY($1)`
	// No key has a byte above a tilde.
	listDocuments = documents + `WHERE d.key >= $1 AND d.key < $1 || E'\x7f' ORDER BY d.key`
)
