package filelog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/docstore"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// stride is how many entries there are for each offset that is kept.
const stride = 256

// contents is what a scan of the file found.
type contents struct {
	// size is the end of the last entry, in bytes; what follows is torn.
	size int64
	// next is the index of the next entry.
	next uint64
	// offsets has the beginning of every stride-th entry.
	offsets []int64
	tree    hashtree.Tree
	docs    *docstore.Store

	// hashes are those of the last leaves, which the tree does not have yet.
	hashes [][]byte
}

// scan reads the whole file. Damage that a crash cannot have caused is an error.
// Each record, if that is not nil, is told of all entries.
func scan(f io.Reader, name string, each func(ledger.Record) error) (contents, error) {
	c := contents{docs: docstore.New()}
	r := bufio.NewReaderSize(f, maxLine)
	for {
		b, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(b) == 0 {
			return c, c.grow()
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return contents{}, fmt.Errorf("ledger: read %s: %w", name, err)
		}
		l, err := whole(b)
		if errors.Is(err, errFormat) && c.next == 0 {
			return contents{}, fmt.Errorf("ledger: %s: %w", name, err)
		}
		if err != nil || l.record.Index != c.next {
			return c, errors.Join(checkTorn(r, b, c, name), c.grow())
		}
		if err := c.take(l.record); err != nil {
			return contents{}, fmt.Errorf("ledger: %s is damaged at offset %d: %w; restore the file from a backup", name, c.size, err)
		}
		if each != nil {
			if err := each(l.record); err != nil {
				return contents{}, err
			}
		}
		c.size += int64(len(b))
	}
}

func whole(b []byte) (line, error) {
	if len(b) == 0 || b[len(b)-1] != '\n' {
		return line{}, errLine
	}
	return parseLine(b[:len(b)-1])
}

// take adds an entry that is at the end so far.
func (c *contents) take(r ledger.Record) error {
	put, deleted, err := r.Documents()
	if err != nil {
		return err
	}
	if c.next%stride == 0 {
		c.offsets = append(c.offsets, c.size)
	}
	c.next++
	c.docs.Apply(put, deleted)
	if c.hashes = append(c.hashes, hashtree.Hash(r.Leaf)); len(c.hashes) == stride {
		return c.grow()
	}
	return nil
}

func (c *contents) grow() (err error) {
	c.tree, err = c.tree.Grown(c.hashes...)
	c.hashes = nil
	return err
}

// checkTorn looks at bad, which is where entry c.next should be, and all that
// follows. If a later batch begins there, entry c.next was durable and somebody
// was told so: that is damage. Else it is the torn end of the last write.
func checkTorn(r *bufio.Reader, bad []byte, c contents, name string) error {
	for b := bad; ; {
		if l, ok := anywhere(b); ok && l.batch > c.next {
			return fmt.Errorf("ledger: %s is damaged at offset %d, where entry %d should be (entry %d follows); restore the file from a backup", name, c.size, c.next, l.record.Index)
		} else if ok && l.record.Index < c.next {
			return fmt.Errorf("ledger: %s is damaged at offset %d: entry %d stands there again instead of entry %d; restore the file from a backup", name, c.size, l.record.Index, c.next)
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

// anywhere looks for an entry in b that ends where b ends, also behind garbage: a
// newline that is damaged makes one line of two.
func anywhere(b []byte) (line, bool) {
	for i := range b {
		// Eight digits, a space and the index; the rest is left to parseLine.
		if i+9 < len(b) && b[i+8] == ' ' && b[i+9] >= '0' && b[i+9] <= '9' {
			if l, err := whole(b[i:]); err == nil {
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
