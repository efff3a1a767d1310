package filelog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"

	"github.com/writ-mesh/writ/ca/ledger"
)

type kind string

const (
	kindCert  kind = "cert"
	kindToken kind = "token"
	kindJoin  kind = "join"
)

// maxLine bounds a record in bytes; a SPIFFE ID has at most 2 KiB, and there are
// at most two in a record, which JSON may make six times as long.
const maxLine = 64 << 10

// joined is the content of a record of kind join.
type joined struct {
	TokenID     string             `json:"token"`
	Certificate ledger.Certificate `json:"certificate"`
}

// line is a record in the file.
type line struct {
	index, batch uint64
	kind         kind
	body         []byte
}

var errLine = errors.New("not a record")

// appendLine appends the bytes of l to buf.
func appendLine(buf []byte, l line) []byte {
	start := len(buf)
	buf = append(buf, "00000000 "...)
	buf = strconv.AppendUint(buf, l.index, 10)
	buf = append(buf, ' ')
	buf = strconv.AppendUint(buf, l.batch, 10)
	buf = append(buf, ' ')
	buf = append(buf, l.kind...)
	buf = append(buf, ' ')
	buf = append(buf, l.body...)
	sum := crc32.Checksum(buf[start+9:], crc32.MakeTable(crc32.Castagnoli))
	const hex = "0123456789abcdef"
	for i := range 8 {
		buf[start+i] = hex[sum>>(28-4*i)&0xf]
	}
	return append(buf, '\n')
}

// parseLine reads one record without its newline. What it takes, appendLine gives
// back byte for byte. body is part of b.
func parseLine(b []byte) (line, error) {
	if len(b) < 9 || b[8] != ' ' {
		return line{}, errLine
	}
	rest := b[9:]
	if want := fmt.Sprintf("%08x", crc32.Checksum(rest, crc32.MakeTable(crc32.Castagnoli))); string(b[:8]) != want {
		return line{}, errLine
	}
	fields := bytes.SplitN(rest, []byte{' '}, 4)
	if len(fields) != 4 {
		return line{}, errLine
	}
	index, err1 := number(fields[0])
	batch, err2 := number(fields[1])
	l := line{index: index, batch: batch, kind: kind(fields[2]), body: fields[3]}
	if err1 != nil || err2 != nil || batch > index {
		return line{}, errLine
	}
	switch l.kind {
	case kindCert, kindToken, kindJoin:
		return l, nil
	}
	return line{}, errLine
}

// number refuses the other ways to write the same number.
func number(b []byte) (uint64, error) {
	n, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != string(b) {
		return 0, errLine
	}
	return n, nil
}

// certificate returns the certificate that a record carries, if it carries one.
func (l line) certificate() (c ledger.Certificate, ok bool, err error) {
	switch l.kind {
	case kindCert:
		err = json.Unmarshal(l.body, &c)
		return c, true, err
	case kindJoin:
		var j joined
		err = json.Unmarshal(l.body, &j)
		return j.Certificate, true, err
	}
	return c, false, nil
}
