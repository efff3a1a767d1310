//go:build etcd

package etcdstore

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

// The keys. What is below statePrefix is watched.
const (
	statePrefix    = "state/"
	headKey        = statePrefix + "head"
	documentPrefix = statePrefix + "documents/"
	entryPrefix    = "entries/"
	packPrefix     = "packs/"
	hashPrefix     = "hashes/"
)

// maxPack bounds a pack, in bytes; a piece with more stays as it is.
const maxPack = 1 << 20

// maxPiece bounds a piece that is unpacked, in bytes.
const maxPiece = 256 << 20

func entriesOf(piece uint64) string { return fmt.Sprintf("%s%012x/", entryPrefix, piece) }

// segmentKey is that of the entries of one batch in one piece, by the first of them.
func segmentKey(index uint64) string {
	return fmt.Sprintf("%s%02x", entriesOf(index/hashtree.PieceSize), index%hashtree.PieceSize)
}

func packKey(piece uint64) string { return fmt.Sprintf("%s%012x", packPrefix, piece) }
func hashKey(piece uint64) string { return fmt.Sprintf("%s%012x", hashPrefix, piece) }

// head is the value of headKey.
type head struct {
	Size uint64   `json:"size"`
	Edge [][]byte `json:"edge"`
}

func parseHead(data []byte) (hashtree.Tree, error) {
	if data == nil {
		return hashtree.Tree{}, nil
	}
	var h head
	if err := json.Unmarshal(data, &h); err != nil {
		return hashtree.Tree{}, fmt.Errorf("%w: the head of the log cannot be read", errAltered)
	}
	return hashtree.At(h.Size, h.Edge)
}

func encodeHead(t hashtree.Tree) (string, error) {
	data, err := json.Marshal(head{t.Size(), t.Edge()})
	return string(data), err
}

// errAltered is that of what nobody wrote so.
var errAltered = errors.New("the member's data was altered; stop it, and restore the cluster from a backup")

// A document is its version in eight bytes and then its value.
func encodeDocument(d ledger.Document) string {
	return string(append(binary.BigEndian.AppendUint64(nil, d.Version), d.Value...))
}

func parseDocument(key, data []byte) (ledger.Document, error) {
	name, ok := bytes.CutPrefix(key, []byte(documentPrefix))
	if !ok || len(data) < 8 {
		return ledger.Document{}, fmt.Errorf("%w: document %q", errAltered, key)
	}
	return ledger.Document{Key: string(name), Version: binary.BigEndian.Uint64(data), Value: append([]byte{}, data[8:]...)}, nil
}

// nonceSize is that of the mark with which a segment begins, by which a batch is found
// again whose answer was lost.
const nonceSize = 16

// encodeRecords lays records out one after the other: lengths and bytes.
func encodeRecords(out []byte, records []ledger.Record) []byte {
	for _, r := range records {
		for _, part := range [][]byte{r.Leaf, r.Values} {
			out = binary.AppendUvarint(out, uint64(len(part)))
			out = append(out, part...)
		}
	}
	return out
}

// parseRecords reads what encodeRecords wrote; the first has that index.
func parseRecords(data []byte, index uint64) (out []ledger.Record, err error) {
	part := func() []byte {
		n, size := binary.Uvarint(data)
		if size <= 0 || n > uint64(len(data)-size) {
			err = fmt.Errorf("%w: entry %d cannot be read", errAltered, index)
			data = nil
			return nil
		}
		p := data[size : size+int(n)] //nolint:gosec // no longer than the data
		data = data[size+int(n):]     //nolint:gosec // the same
		return p
	}
	for len(data) > 0 {
		r := ledger.Record{Index: index, Leaf: part()}
		if r.Values = part(); err != nil {
			return nil, err
		}
		if len(r.Values) == 0 {
			r.Values = nil
		}
		out = append(out, r)
		index++
	}
	return out, nil
}

func pack(records []ledger.Record) ([]byte, error) {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.DefaultCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(encodeRecords(nil, records)); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

func unpack(data []byte, piece uint64) ([]ledger.Record, error) {
	raw, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(data)), maxPiece))
	if err != nil {
		return nil, fmt.Errorf("%w: entries from %d on cannot be unpacked", errAltered, piece*hashtree.PieceSize)
	}
	return parseRecords(raw, piece*hashtree.PieceSize)
}
