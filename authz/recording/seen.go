// Package recording keeps requests that were decided, with what a decision may
// depend on, so that other policies can be tried on them: `writ replay`, `writ
// promote` and `writ suggest` read it.
//
// A recording is a folder of two files, the newer of which is appended to until it
// has half of the bound and then takes the place of the older. Equal requests are one
// line with a count. Secrets are out of it before it gets here; what is not known of
// a request is said to be unknown, so that nobody takes it for absent.
package recording

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Seen is a request, or a connection, and what became of it.
type Seen struct {
	// Time is when it was last seen, Count how often since the line before that is
	// equal.
	Time  time.Time `json:"time"`
	Count int       `json:"count"`
	// From is the caller's SPIFFE ID, empty for plain text; To the workload's.
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
	// Proxy is the node id of the Envoy; empty if it is not known.
	Proxy         string `json:"proxy,omitempty"`
	SourceAddress string `json:"source_address,omitempty"`
	// Remote is the client as x-forwarded-for tells it.
	Remote  string `json:"remote,omitempty"`
	Address string `json:"address,omitempty"`
	Port    uint32 `json:"port,omitempty"`
	SNI     string `json:"sni,omitempty"`
	// TCP: it is a connection, and has nothing of the following.
	TCP    bool   `json:"tcp,omitempty"`
	Method string `json:"method,omitempty"`
	Host   string `json:"host,omitempty"`
	Path   string `json:"path,omitempty"`
	Query  string `json:"query,omitempty"`
	// Headers have names in lower case. AllHeaders says that they are all there
	// were but for Dropped, which nobody would tell two requests apart by.
	Headers    map[string]string `json:"headers,omitempty"`
	AllHeaders bool              `json:"all_headers,omitempty"`
	// Claims are those of the verified token; nil without one.
	Claims map[string]any `json:"claims,omitempty"`
	// Body says that there was one; it is never recorded.
	Body bool `json:"body,omitempty"`
	// Allowed is what became of it, Rule who refused it, and Observed who would have.
	Allowed  bool     `json:"allowed"`
	Rule     string   `json:"rule,omitempty"`
	Observed []string `json:"observed,omitempty"`
	// Policies are those of the decider that was asked, if one was.
	Policies []string `json:"policies,omitempty"`
}

// Dropped are headers that are another one for each request, and not recorded.
func Dropped(name string) bool {
	switch name {
	case "x-request-id", "traceparent", "tracestate", "date", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "b3",
		"x-envoy-expected-rq-timeout-ms", "x-envoy-attempt-count", "x-forwarded-client-cert", "content-length":
		return true
	}
	return false
}

// The files of a recording.
const (
	newer = "recording.jsonl"
	older = "recording.1.jsonl"
)

// maxLine bounds a line, in bytes.
const maxLine = 256 << 10

// Read reads a recording, a folder or one file, from its beginning. Lines that are
// torn or damaged are left out and counted.
func Read(path string, each func(*Seen) error) (skipped int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("recording: %w", err)
	}
	if !info.IsDir() {
		return readFile(path, each)
	}
	found := false
	for _, name := range []string{older, newer} {
		n, err := readFile(filepath.Join(path, name), each)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		skipped += n
		if err != nil {
			return skipped, err
		}
		found = true
	}
	if !found {
		return 0, fmt.Errorf("recording: %s has neither %s nor %s", path, newer, older)
	}
	return skipped, nil
}

func readFile(path string, each func(*Seen) error) (skipped int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("recording: %w", err)
	}
	defer f.Close()
	return scan(f, each)
}

func scan(r io.Reader, each func(*Seen) error) (skipped int, err error) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = in.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return skipped, fmt.Errorf("recording: %w", err)
		}
		if s, ok := parse(line); ok && !long {
			if eachErr := each(s); eachErr != nil {
				return skipped, eachErr
			}
		} else if len(bytes.TrimSpace(line)) > 0 {
			skipped++
		}
		if err != nil {
			return skipped, nil //nolint:nilerr // the end of the file
		}
	}
}

// parse reads one line; a torn one is no JSON.
func parse(line []byte) (*Seen, bool) {
	s := new(Seen)
	if err := json.Unmarshal(line, s); err != nil || s.Count < 1 {
		return nil, false
	}
	return s, true
}
