package checkpoint

import (
	"fmt"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// Audit computes what a log's head must be from its entries, which come one after
// the other, and compares it with heads that are known. The zero value begins with
// an empty log.
type Audit struct {
	// Known are heads that the log must have had, for example of checkpoints that
	// were kept. Those met are taken out.
	Known []ledger.Head

	tree   hashtree.Tree
	hashes [][]byte
}

// chunk is how many leaves are put into the tree together.
const chunk = 1024

// Add takes the next entry. Its error says what is wrong with it, or with what
// came up to it.
func (a *Audit) Add(r ledger.Record) error {
	if next := a.tree.Size() + uint64(len(a.hashes)); r.Index != next {
		return fmt.Errorf("entry %d comes where entry %d should", r.Index, next)
	}
	if _, err := r.Entry(); err != nil {
		return err
	}
	if _, _, err := r.Documents(); err != nil {
		return err
	}
	if a.hashes = append(a.hashes, hashtree.Hash(r.Leaf)); len(a.hashes) == chunk || a.known(r.Index+1) {
		_, err := a.Head()
		return err
	}
	return nil
}

func (a *Audit) known(size uint64) bool {
	for _, k := range a.Known {
		if k.Size == size {
			return true
		}
	}
	return false
}

// Head is that of the log so far.
func (a *Audit) Head() (ledger.Head, error) {
	var err error
	if a.tree, err = a.tree.Grown(a.hashes...); err != nil {
		return ledger.Head{}, err
	}
	a.hashes = nil
	h, err := a.tree.Head()
	if err != nil {
		return ledger.Head{}, err
	}
	left := a.Known[:0]
	for _, k := range a.Known {
		switch {
		case k.Size == 0: // the beginning of every log
		case k.Size != h.Size:
			left = append(left, k)
		case k != h:
			return ledger.Head{}, fmt.Errorf("the first %d entries have the root hash %x, and had %x: at least one of them was altered", h.Size, h.Root, k.Root)
		}
	}
	a.Known = left
	return h, nil
}

// End is the head of the whole log, in which all known ones were met.
func (a *Audit) End() (ledger.Head, error) {
	h, err := a.Head()
	if err != nil {
		return h, err
	}
	for _, k := range a.Known {
		return h, fmt.Errorf("the log has %d entries, and had %d: the last ones are lost", h.Size, k.Size)
	}
	return h, nil
}
