package translate

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	wire "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames sends one request over HTTP/2 as it is written and gives its status; none if
// the stream or the connection is reset.
func (m *attackedMesh) frames(target string, fields []hpack.HeaderField) []int {
	c, err := net.DialTimeout("tcp", m.targets[target], bound)
	if err != nil {
		return nil
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(bound))
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		_ = encoder.WriteField(f) // into memory
	}
	framer := wire.NewFramer(c, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	go func() { // a refusal may come before the end
		_, _ = io.WriteString(c, wire.ClientPreface)
		_ = framer.WriteSettings()
		first := true
		for rest := block.Bytes(); first || len(rest) > 0; first = false {
			part := rest[:min(len(rest), 16000)]
			rest = rest[len(part):]
			if first {
				_ = framer.WriteHeaders(wire.HeadersFrameParam{StreamID: 1, BlockFragment: part, EndStream: true, EndHeaders: len(rest) == 0})
			} else {
				_ = framer.WriteContinuation(1, len(rest) == 0, part)
			}
		}
	}()
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return nil
		}
		switch f := f.(type) {
		case *wire.MetaHeadersFrame:
			status, _ := strconv.Atoi(f.PseudoValue("status"))
			return []int{status}
		case *wire.RSTStreamFrame, *wire.GoAwayFrame:
			return nil
		}
	}
}

// framed makes the fields of a request: a GET of /public with changes, each "name:
// value". A pseudo-header takes the place of the usual one; "+name: value" is added at
// the end, as other headers are, and "-name" is left out.
func framed(host string, changes ...string) []hpack.HeaderField {
	out := []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: host}, {Name: ":path", Value: "/public"}}
	for _, change := range changes {
		change, added := strings.CutPrefix(strings.ReplaceAll(change, "HOST", host), "+")
		if name, ok := strings.CutPrefix(change, "-"); ok {
			out = slices.DeleteFunc(out, func(f hpack.HeaderField) bool { return f.Name == name })
			continue
		}
		at := strings.Index(change[1:], ": ") + 1
		f := hpack.HeaderField{Name: change[:at], Value: change[at+2:]}
		usual := slices.IndexFunc(out, func(have hpack.HeaderField) bool { return have.Name == f.Name })
		regular := slices.IndexFunc(out, func(have hpack.HeaderField) bool { return !strings.HasPrefix(have.Name, ":") })
		switch {
		case added || !strings.HasPrefix(f.Name, ":"):
			out = append(out, f)
		case usual >= 0:
			out[usual] = f
		case regular >= 0:
			out = slices.Insert(out, regular, f)
		default:
			out = append(out, f)
		}
	}
	return out
}
