package filelog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/writ-mesh/writ/ca/ledger"
)

// contents is what a scan of the file found.
type contents struct {
	// size is the end of the last record, in bytes; what follows is torn.
	size int64
	// next is the index of the next record.
	next   uint64
	tokens map[string]ledger.Token
	// last is the last record; its body is a copy.
	last line
}

// scan reads the whole file. Damage that a crash cannot have caused is an error.
func scan(f io.Reader, name string) (contents, error) {
	c := contents{tokens: make(map[string]ledger.Token)}
	r := bufio.NewReaderSize(f, maxLine)
	for {
		b, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(b) == 0 {
			return c, nil
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return contents{}, fmt.Errorf("ledger: read %s: %w", name, err)
		}
		l, ok := whole(b)
		if !ok || l.index != c.next {
			return c, checkTorn(r, b, c, name)
		}
		if err := c.take(l); err != nil {
			return contents{}, fmt.Errorf("ledger: %s, offset %d: %w; restore the file from a backup", name, c.size, err)
		}
		c.last.kind, c.last.body = l.kind, append(c.last.body[:0], l.body...)
		c.size += int64(len(b))
		c.next++
	}
}

func whole(b []byte) (line, bool) {
	if len(b) == 0 || b[len(b)-1] != '\n' {
		return line{}, false
	}
	l, err := parseLine(b[:len(b)-1])
	return l, err == nil
}

// take keeps track of the tokens.
func (c *contents) take(l line) error {
	switch l.kind {
	case kindToken:
		var t ledger.Token
		if err := json.Unmarshal(l.body, &t); err != nil {
			return err
		}
		c.tokens[t.ID] = t
	case kindJoin:
		var j joined
		if err := json.Unmarshal(l.body, &j); err != nil {
			return err
		}
		delete(c.tokens, j.TokenID)
	case kindCert:
	}
	return nil
}

// checkTorn looks at bad, which is where record c.next should be, and all that
// follows. If a later batch begins there, record c.next was durable and somebody
// was told so: that is damage. Else it is the torn end of the last write.
func checkTorn(r *bufio.Reader, bad []byte, c contents, name string) error {
	for b := bad; ; {
		if l, ok := anywhere(b); ok && l.batch > c.next {
			return fmt.Errorf("ledger: %s is damaged at offset %d, where record %d should be (record %d follows); restore the file from a backup", name, c.size, c.next, l.index)
		} else if ok && l.index < c.next {
			return fmt.Errorf("ledger: %s is damaged at offset %d: record %d stands there again instead of record %d; restore the file from a backup", name, c.size, l.index, c.next)
		}
		var err error
		b, err = r.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(b) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("ledger: read %s: %w", name, err)
		}
	}
}

// anywhere looks for a record in b that ends where b ends, also behind garbage: a
// newline that is damaged makes one line of two.
func anywhere(b []byte) (line, bool) {
	for i := range b {
		// Eight digits, a space and the index; the rest is left to parseLine.
		if i+9 < len(b) && b[i+8] == ' ' && b[i+9] >= '0' && b[i+9] <= '9' {
			if l, ok := whole(b[i:]); ok {
				return l, true
			}
		}
	}
	return line{}, false
}

// keepTorn copies what follows size to a file beside, for whoever wants to look.
func keepTorn(f *os.File, size int64) (int64, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == size {
		return 0, err
	}
	out, err := os.OpenFile(f.Name()+".torn", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(out, io.NewSectionReader(f, size, info.Size()-size))
	return info.Size() - size, errors.Join(err, out.Close())
}
