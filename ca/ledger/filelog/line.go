package filelog

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"

	"github.com/writ-mesh/writ/ca/ledger"
)

// maxLine bounds a line in bytes: an entry of at most 64 KiB, and documents of at
// most 256 KiB in base64 with their keys.
const maxLine = 512 << 10

// line is an entry in the file.
type line struct {
	batch  uint64
	record ledger.Record
}

var (
	errLine = errors.New("not an entry")
	// errFormat is that of a file as the first versions wrote it.
	errFormat = errors.New("it is of an old format without a hash tree, which is not read any more; move it away to begin a new one (what was issued stays valid, and is not in the new one)")
)

// appendLine appends the bytes of l to buf.
func appendLine(buf []byte, l line) []byte {
	start := len(buf)
	buf = append(buf, "00000000 "...)
	buf = strconv.AppendUint(buf, l.record.Index, 10)
	buf = append(buf, ' ')
	buf = strconv.AppendUint(buf, l.batch, 10)
	buf = append(buf, ' ')
	buf = append(buf, l.record.Leaf...)
	if len(l.record.Values) > 0 {
		buf = append(buf, '\t')
		buf = append(buf, l.record.Values...)
	}
	sum := crc32.Checksum(buf[start+9:], crc32.MakeTable(crc32.Castagnoli))
	const hex = "0123456789abcdef"
	for i := range 8 {
		buf[start+i] = hex[sum>>(28-4*i)&0xf]
	}
	return append(buf, '\n')
}

// parseLine reads one line without its newline. What it takes, appendLine gives
// back byte for byte. The record is part of b.
func parseLine(b []byte) (line, error) {
	if len(b) < 9 || b[8] != ' ' {
		return line{}, errLine
	}
	rest := b[9:]
	if want := fmt.Sprintf("%08x", crc32.Checksum(rest, crc32.MakeTable(crc32.Castagnoli))); string(b[:8]) != want {
		return line{}, errLine
	}
	fields := bytes.SplitN(rest, []byte{' '}, 3)
	if len(fields) != 3 {
		return line{}, errLine
	}
	index, err1 := number(fields[0])
	batch, err2 := number(fields[1])
	leaf, values, both := bytes.Cut(fields[2], []byte{'\t'})
	if err1 != nil || err2 != nil || batch > index || both && len(values) == 0 || bytes.ContainsAny(fields[2], "\n") {
		return line{}, errLine
	}
	if len(leaf) == 0 || leaf[0] != '{' {
		if k, _, _ := bytes.Cut(leaf, []byte{' '}); string(k) == "cert" || string(k) == "token" || string(k) == "join" {
			return line{}, errFormat
		}
		return line{}, errLine
	}
	return line{batch: batch, record: ledger.Record{Index: index, Leaf: leaf, Values: values}}, nil
}

// number refuses the other ways to write the same number.
func number(b []byte) (uint64, error) {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != string(b) {
		return 0, errLine
	}
	return n, nil
}
