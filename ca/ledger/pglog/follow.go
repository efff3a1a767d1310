package pglog

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/writ-mesh/writ/ca/ledger"
)

// look is how often the follower looks for changes that nobody told of.
const look = 10 * time.Second

// follow keeps the documents in memory as they are in the database, until ctx ends.
func (l *Log) follow(ctx context.Context, c Config) {
	defer close(l.stopped)
	wait := firstRetry
	for {
		begin := time.Now()
		err := l.listen(ctx, c)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > lastRetry {
			wait = firstRetry
		}
		l.log.WarnContext(ctx, "who watches the ledger hears nothing for the moment: its database does not answer", slog.Any("error", l.failed(err)), slog.Duration("again_in", wait))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, lastRetry)
	}
}

// listen follows the database over one connection, until that or ctx ends.
func (l *Log) listen(ctx context.Context, c Config) error {
	cfg := l.cfg.Copy()
	if err := c.password(cfg); err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	at, err := l.load(ctx, conn)
	if err != nil {
		return err
	}
	for {
		l.followed.Set(at)
		if err := hear(ctx, conn); err != nil {
			return err
		}
		if at, err = l.catchUp(ctx, conn, at); err != nil {
			return err
		}
	}
}

// hear waits for a notification, but not for ever: the connection may be dead.
func hear(ctx context.Context, conn *pgx.Conn) error {
	wait, cancel := context.WithTimeout(ctx, look)
	defer cancel()
	_, err := conn.WaitForNotification(wait)
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return nil
	}
	return err
}

// load reads all documents; it returns how many entries they contain.
func (l *Log) load(ctx context.Context, conn *pgx.Conn) (size uint64, err error) {
	err = l.within(ctx, func(ctx context.Context) error {
		// The size first: what comes in between is read twice.
		tree, err := scanHead(conn.QueryRow(ctx, readHead))
		if err != nil {
			return err
		}
		rows, err := conn.Query(ctx, listDocuments, "")
		if err != nil {
			return err
		}
		docs, err := collect(rows)
		if err != nil {
			return err
		}
		size = tree.Size()
		l.docs.Replace(docs)
		return nil
	})
	return size, err
}

// catchUp reads what changed since the first at entries.
func (l *Log) catchUp(ctx context.Context, conn *pgx.Conn, at uint64) (size uint64, err error) {
	err = l.within(ctx, func(ctx context.Context) error {
		tree, err := scanHead(conn.QueryRow(ctx, readHead))
		if err != nil {
			return err
		}
		if size = tree.Size(); size == at {
			return nil
		}
		rows, err := conn.Query(ctx, readTouched, at)
		if err != nil {
			return err
		}
		touched, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
		if err != nil {
			return err
		}
		keys := slices.Concat(touched...)
		if len(keys) == 0 {
			return nil
		}
		rows, err = conn.Query(ctx, getDocuments, keys)
		if err != nil {
			return err
		}
		docs, err := collect(rows)
		if err != nil {
			return err
		}
		l.docs.Apply(docs, gone(keys, docs))
		return nil
	})
	return size, err
}

// gone are the keys without a document.
func gone(keys []string, docs []ledger.Document) []string {
	have := make(map[string]struct{}, len(docs))
	for _, d := range docs {
		have[d.Key] = struct{}{}
	}
	return slices.DeleteFunc(slices.Clone(keys), func(key string) bool {
		_, ok := have[key]
		return ok
	})
}
