package decisionlog

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"time"
)

// batchBytes is how much text a batch gathers at most, in bytes: some two thousand
// records, a tenth of that when compressed.
const batchBytes = 512 << 10

// batch is what is being gathered of one class.
type batch struct {
	text    bytes.Buffer
	records int
	// due is when it is finished, however little is in it.
	due time.Time
}

// packed is a batch that is finished.
type packed struct {
	class, records int
	data           []byte
}

func (b *batch) add(r *Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode a record: %w", err)
	}
	if b.records == 0 {
		b.text.WriteString("[\n")
	} else {
		b.text.WriteString(",\n")
	}
	b.text.Write(text)
	b.records++
	return nil
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
	p := packed{class, b.records, out.Bytes()}
	b.text.Reset()
	b.records = 0
	if err != nil {
		return packed{}, fmt.Errorf("compress a batch: %w", err)
	}
	return p, nil
}
