package decisionlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/writ-mesh/writ/authz/decisionlog/spool"
)

// sendParts offers what a sink finds too large in halves, and those in halves again, down
// to single records. lost is how many of them it will never take. After an error some may
// have been taken; they are sent again with the rest.
func (l *Log) sendParts(ctx context.Context, text []byte) (lost int, err error) {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is one
	var send func(records [][]byte) error
	send = func(records [][]byte) error {
		var b batch
		for _, r := range records {
			b.add(bytes.TrimSuffix(r, []byte("\n")), nil)
		}
		p, err := b.pack(classRefusal, z)
		if err != nil {
			return err
		}
		err = l.o.Sink.Send(ctx, Batch{Packed: p.data, Lines: slices.Concat(records...)})
		refused := (*RefusedError)(nil)
		switch {
		case !errors.As(err, &refused):
			return err
		case !refused.TooLarge || len(records) == 1:
			lost += len(records)
			return nil
		}
		half := len(records) / 2
		if err := send(records[:half]); err != nil {
			return err
		}
		return send(records[half:])
	}
	records := slices.Collect(bytes.Lines(text))
	if len(records) < 2 {
		return len(records), nil
	}
	half := len(records) / 2
	if err = send(records[:half]); err == nil {
		err = send(records[half:])
	}
	return lost, err
}

// setAside leaves a batch that cannot be read to the next process.
func (l *Log) setAside(ctx context.Context, b spool.Batch, err error) {
	l.spool.SetAside(b)
	l.metrics.drop(b.Class, b.Records, reasonDamaged)
	l.o.Log.ErrorContext(ctx, "a batch of the decision log stays in the spool until the next start", slog.Int("records", b.Records), slog.Any("error", err))
}
