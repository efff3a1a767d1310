package filelog

import (
	"bufio"
	"errors"
	"fmt"
	"os"

	"github.com/writ-mesh/writ/ca/ledger"
)

// Create makes a file (mode 0600) that is not there yet of the records that each gives
// from the first on, as they are in some other store. What it leaves after an error is
// for the caller to remove.
func Create(path string, each func(func(ledger.Record) error) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	out, next := bufio.NewWriter(f), uint64(0)
	var buf []byte
	err = each(func(r ledger.Record) error {
		if r.Index != next {
			return fmt.Errorf("entry %d comes where entry %d should", r.Index, next)
		}
		next++
		buf = appendLine(buf[:0], line{batch: r.Index, record: r})
		_, err := out.Write(buf)
		return err
	})
	if err == nil {
		err = out.Flush()
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("ledger: %s: %w", path, err)
	}
	return nil
}
