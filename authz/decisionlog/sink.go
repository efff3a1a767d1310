package decisionlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Batch is records that are sent together, whole and in both forms.
type Batch struct {
	// Packed is a gzip'd JSON array, as OPA posts its own.
	Packed []byte
	// Lines has a record in each line.
	Lines []byte
}

// A Sink takes batches.
type Sink interface {
	// Send takes a batch. An error means that it is to be sent again, unless it is a
	// [RefusedError].
	Send(ctx context.Context, b Batch) error
}

// RefusedError says that a sink will never take a batch.
type RefusedError struct {
	Err error
	// TooLarge says that it may take parts of it.
	TooLarge bool
}

func (e *RefusedError) Error() string { return e.Err.Error() }

func (e *RefusedError) Unwrap() error { return e.Err }

// maxBatch bounds what a batch may be when it is unpacked, in bytes: its records
// were cut to size when it was made.
const maxBatch = 16 << 20

// lines unpacks a batch into a record a line.
func lines(batch []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(batch))
	if err != nil {
		return nil, &RefusedError{Err: fmt.Errorf("a damaged batch: %w", err)}
	}
	text, err := io.ReadAll(io.LimitReader(z, maxBatch+1))
	if err == nil && len(text) > maxBatch {
		err = errors.New("it is too large")
	}
	if err != nil {
		return nil, &RefusedError{Err: fmt.Errorf("a damaged batch: %w", err)}
	}
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		line = bytes.TrimSuffix(bytes.TrimSpace(line), []byte(","))
		if len(line) > 1 { // not a bracket
			out.Write(line)
			out.WriteByte('\n')
		}
	}
	return out.Bytes(), nil
}

// Stream is a sink that writes a record a line, for a standard output.
type Stream struct{ W io.Writer }

// Send implements [Sink].
func (s Stream) Send(_ context.Context, b Batch) error {
	_, err := s.W.Write(b.Lines)
	return err
}

// File is a sink that appends a record a line to a file of mode 0600. The file is
// opened for each batch, so that it may be moved away at any time.
type File struct{ Path string }

// Send implements [Sink]. What was written of a batch that did not fit is taken
// back.
func (f File) Send(_ context.Context, b Batch) error {
	file, err := os.OpenFile(f.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	before, err := file.Seek(0, io.SeekEnd)
	if err == nil {
		if _, err = file.Write(b.Lines); err != nil {
			err = errors.Join(err, file.Truncate(before))
		}
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}
