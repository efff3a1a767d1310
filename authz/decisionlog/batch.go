package decisionlog

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"time"

	"github.com/writ-mesh/writ/authz/decisionlog/spool"
)

// batchBytes is how much text a batch gathers at most, in bytes: some two thousand
// records, a tenth of that when compressed.
const batchBytes = 512 << 10

// batch is what is being gathered of one class.
type batch struct {
	text    bytes.Buffer
	records int
	// written is where records are in the journal.
	written []*spool.Written
	// due is when it is finished, however little is in it.
	due time.Time
}

// packed is a batch that is finished.
type packed struct {
	class, records int
	data           []byte
	written        []*spool.Written
}

// add takes a record that is encoded.
func (b *batch) add(text []byte, w *spool.Written) {
	if b.records == 0 {
		b.text.WriteString("[\n")
	} else {
		b.text.WriteString(",\n")
	}
	b.text.Write(text)
	b.records++
	if w != nil {
		b.written = append(b.written, w)
	}
}

// pack finishes the batch, which is empty then.
func (b *batch) pack(class int, z *gzip.Writer) (packed, error) {
	b.text.WriteString("\n]\n")
	var out bytes.Buffer
	z.Reset(&out)
	_, err := z.Write(b.text.Bytes())
	if err == nil {
		err = z.Close()
	}
	p := packed{class, b.records, out.Bytes(), b.written}
	b.text.Reset()
	b.records, b.written = 0, nil
	if err != nil {
		return p, fmt.Errorf("compress a batch: %w", err)
	}
	return p, nil
}
