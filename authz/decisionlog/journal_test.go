package decisionlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestJournalRecords: what is no record is left out and counted, but for the end that
// a killed process did not write.
func TestJournalRecords(t *testing.T) {
	long := `{"a": "` + strings.Repeat("x", maxLine) + `"}`
	for name, c := range map[string]struct {
		text, want string
		damaged    int
	}{
		"empty":              {"", "", 0},
		"whole":              {"{\"a\": 1}\n{\"b\": 2}\n", `{"a": 1} {"b": 2}`, 0},
		"torn at the end":    {"{\"a\": 1}\n{\"b\":", `{"a": 1}`, 0},
		"whole but its end":  {"{\"a\": 1}\n{\"b\": 2}", `{"a": 1} {"b": 2}`, 0},
		"torn in the middle": {"{\"a\": 1}\n{\"b\":\n{\"c\": 3}\n", `{"a": 1} {"c": 3}`, 1},
		"no record":          {"7\n{\"c\": 3}\n", `{"c": 3}`, 1},
		"too long":           {long + "\n{\"c\": 3}\n", `{"c": 3}`, 1},
		"too long, torn":     {long, "", 0},
		"an empty line":      {"\n{\"c\": 3}\n", `{"c": 3}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			damaged, err := journalRecords(strings.NewReader(c.text), func(text []byte) error {
				got = append(got, string(text))
				return nil
			})
			if strings.Join(got, " ") != c.want || damaged != c.damaged || err != nil {
				t.Errorf("%q, %d damaged, %v; want %q and %d", got, damaged, err, c.want, c.damaged)
			}
		})
	}
	full := errors.New("full")
	if _, err := journalRecords(strings.NewReader("{}\n"), func([]byte) error { return full }); !errors.Is(err, full) {
		t.Errorf("the error of who takes records is %v", err)
	}
}

// TestTeller: the first is told at once, those that follow once a minute, together.
func TestTeller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l teller
		for i := range 600 {
			n, now := l.tell()
			want := int64(0)
			switch {
			case i == 0:
				want = 1
			case i%60 == 0:
				want = 60
			}
			if n != want || now != (want > 0) {
				t.Fatalf("number %d: %d are told of, want %d", i, n, want)
			}
			time.Sleep(time.Second) //nolint:forbidigo // of a synctest bubble
		}
	})
}

// FuzzJournal: whatever is in a journal, a batch of it is a JSON array of objects.
func FuzzJournal(f *testing.F) {
	for _, seed := range []string{"{\"a\": 1}\n{\"b\": 2}\n", "{\"a\": 1}\n{\"b\":", "7\n{}\n", "{}{}\n", "{\"a\":\"\xff\"}\n", "]\n[\n", "{\r}\n", "{\u2028}\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, journal []byte) {
		var b batch
		damaged, err := journalRecords(bytes.NewReader(journal), func(text []byte) error {
			b.add(text, nil)
			return nil
		})
		if err != nil || damaged+b.records > bytes.Count(journal, []byte("\n"))+1 {
			t.Fatalf("%d records and %d damaged of %q, %v", b.records, damaged, journal, err)
		}
		if b.records == 0 {
			return
		}
		var records []map[string]any
		if err := json.Unmarshal(append(b.text.Bytes(), ']'), &records); err != nil || len(records) != b.records {
			t.Errorf("%d records became %d, %v: %q", b.records, len(records), err, b.text.String())
		}
	})
}
