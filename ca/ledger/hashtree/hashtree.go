// Package hashtree is the Merkle tree (RFC 6962, section 2.1) over a log that
// only grows. It holds a hash for every 256 leaves and those of the last few; for
// a proof it asks the log for the hashes of at most two pieces of 256 leaves.
package hashtree

import (
	"context"
	"fmt"
	"math/bits"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/writ-mesh/writ/ca/ledger"
)

// The leaves of a piece, which are the leaves under one node of a fixed level.
const (
	pieceLevel = 8
	pieceSize  = 1 << pieceLevel
)

// Hash is that of a leaf, with the given content.
func Hash(leaf []byte) []byte { return rfc6962.DefaultHasher.HashLeaf(leaf) }

// Tree is a tree that grows. The zero value is an empty one. It is a value in
// this sense: what Grown returns shares nothing with it that either would change.
type Tree struct {
	size uint64
	// pieces are the hashes of the complete pieces, and tail those of the leaves
	// behind them.
	pieces [][]byte
	tail   [][]byte
	// edge has the hashes of the largest complete subtrees, from left to right.
	edge [][]byte
}

func factory() *compact.RangeFactory {
	return &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
}

// Size is the number of leaves.
func (t Tree) Size() uint64 { return t.size }

// Grown is the tree with more leaves, given their hashes.
func (t Tree) Grown(leaves ...[]byte) (Tree, error) {
	r, err := factory().NewRange(0, t.size, slices.Clone(t.edge))
	if err != nil {
		return Tree{}, fmt.Errorf("hash tree: %w", err)
	}
	out := Tree{size: t.size, pieces: t.pieces, tail: slices.Clone(t.tail)}
	for _, leaf := range leaves {
		if err := r.Append(leaf, func(id compact.NodeID, hash []byte) {
			if id.Level == pieceLevel {
				// Only one tree grows out of another, so that what is behind the end
				// of pieces is nobody's; a change that failed is written over.
				out.pieces = append(out.pieces, hash)
			}
		}); err != nil {
			return Tree{}, fmt.Errorf("hash tree: %w", err)
		}
		out.size++
		if out.tail = append(out.tail, leaf); len(out.tail) == pieceSize {
			out.tail = nil
		}
	}
	out.edge = r.Hashes()
	return out, nil
}

// At is a tree of that size whose largest complete subtrees have those hashes, from
// left to right. It grows and has a head, but proves nothing.
func At(size uint64, edge [][]byte) (Tree, error) {
	if _, err := factory().NewRange(0, size, edge); err != nil {
		return Tree{}, fmt.Errorf("hash tree: %w", err)
	}
	return Tree{size: size, edge: edge}, nil
}

// Resume is a tree of complete pieces, given their hashes, and the leaves behind them,
// given theirs. It is whole, so that it proves too.
func Resume(pieces, tail [][]byte) (Tree, error) {
	t := Tree{size: uint64(len(pieces))*pieceSize + uint64(len(tail)), pieces: pieces, tail: tail}
	if len(tail) >= pieceSize {
		return Tree{}, fmt.Errorf("hash tree: %d leaves are not the rest behind pieces of %d", len(tail), pieceSize)
	}
	// The largest complete subtrees are those of the binary digits of the numbers.
	for _, level := range [][][]byte{pieces, tail} {
		for len(level) > 0 {
			width := 1 << (bits.Len(uint(len(level))) - 1)
			hash, err := perfect(level[:width])
			if err != nil {
				return Tree{}, err
			}
			t.edge, level = append(t.edge, hash), level[width:]
		}
	}
	return t, nil
}

// PieceSize is how many leaves a piece has.
const PieceSize = pieceSize

// Pieces are the hashes of the complete pieces; of a tree made by At, of those that are
// complete since.
func (t Tree) Pieces() [][]byte { return t.pieces }

// Edge is what At takes.
func (t Tree) Edge() [][]byte { return t.edge }

// Head is the tree's size and root.
func (t Tree) Head() (ledger.Head, error) {
	h := ledger.Head{Size: t.size}
	if t.size == 0 {
		h.Root = [32]byte(rfc6962.DefaultHasher.EmptyRoot())
		return h, nil
	}
	r, err := factory().NewRange(0, t.size, slices.Clone(t.edge))
	if err != nil {
		return ledger.Head{}, fmt.Errorf("hash tree: %w", err)
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return ledger.Head{}, fmt.Errorf("hash tree: %w", err)
	}
	h.Root = [32]byte(root)
	return h, nil
}

// Leaves gives the hashes of the leaves from begin to before end, which the tree
// has.
type Leaves func(ctx context.Context, begin, end uint64) ([][]byte, error)

// Prover makes the proofs of a log, as ledger.Log has them, for those that embed it.
type Prover struct {
	// Whole gives the tree of the log as it is now.
	Whole func(context.Context) (Tree, error)
	// Leaves gives hashes of the log's leaves.
	Leaves Leaves
}

// InclusionProof implements ledger.Log.
func (p Prover) InclusionProof(ctx context.Context, index, size uint64) ([][]byte, error) {
	tree, err := p.Whole(ctx)
	if err != nil {
		return nil, err
	}
	return tree.Inclusion(ctx, p.Leaves, index, size)
}

// ConsistencyProof implements ledger.Log.
func (p Prover) ConsistencyProof(ctx context.Context, from, to uint64) ([][]byte, error) {
	tree, err := p.Whole(ctx)
	if err != nil {
		return nil, err
	}
	return tree.Consistency(ctx, p.Leaves, from, to)
}

// Inclusion proves that the leaf with that index is in the tree of the first size
// leaves (RFC 6962, section 2.1.1).
func (t Tree) Inclusion(ctx context.Context, leaves Leaves, index, size uint64) ([][]byte, error) {
	if size > t.size || index >= size {
		return nil, fmt.Errorf("%w: entry %d of the first %d; the log has %d", ledger.ErrNoEntry, index, size, t.size)
	}
	nodes, err := proof.Inclusion(index, size)
	if err != nil {
		return nil, fmt.Errorf("hash tree: %w", err)
	}
	return t.prove(ctx, leaves, nodes)
}

// Consistency proves that the tree of the first from leaves is the beginning of
// that of the first to leaves (RFC 6962, section 2.1.2).
func (t Tree) Consistency(ctx context.Context, leaves Leaves, from, to uint64) ([][]byte, error) {
	if to > t.size || from > to {
		return nil, fmt.Errorf("%w: from %d to %d entries; the log has %d", ledger.ErrNoEntry, from, to, t.size)
	}
	nodes, err := proof.Consistency(from, to)
	if err != nil {
		return nil, fmt.Errorf("hash tree: %w", err)
	}
	return t.prove(ctx, leaves, nodes)
}

func (t Tree) prove(ctx context.Context, leaves Leaves, nodes proof.Nodes) ([][]byte, error) {
	hashes := make([][]byte, 0, len(nodes.IDs))
	for _, id := range nodes.IDs {
		h, err := t.node(ctx, leaves, id)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, h)
	}
	out, err := nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
	if err != nil {
		return nil, fmt.Errorf("hash tree: %w", err)
	}
	return out, nil
}

// node is the hash of a complete subtree.
func (t Tree) node(ctx context.Context, leaves Leaves, id compact.NodeID) ([]byte, error) {
	if id.Level >= pieceLevel {
		width := uint64(1) << (id.Level - pieceLevel)
		return perfect(t.pieces[id.Index*width : (id.Index+1)*width])
	}
	begin, end := id.Index<<id.Level, (id.Index+1)<<id.Level
	if first := t.size - uint64(len(t.tail)); begin >= first {
		return perfect(t.tail[begin-first : end-first])
	}
	hashes, err := leaves(ctx, begin, end)
	if err != nil {
		return nil, err
	}
	return perfect(hashes)
}

// perfect is the hash over the nodes of one level of a complete subtree.
func perfect(hashes [][]byte) ([]byte, error) {
	r := factory().NewEmptyRange(0)
	for _, h := range hashes {
		if err := r.Append(h, nil); err != nil {
			return nil, fmt.Errorf("hash tree: %w", err)
		}
	}
	root, err := r.GetRootHash(nil)
	if err != nil {
		return nil, fmt.Errorf("hash tree: %w", err)
	}
	return root, nil
}
