package basedoc

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
)

// maxDepth is encoding/json's bound for containers in containers.
const maxDepth = 10_000

// maxOdd bounds, in bytes, what OPA's own decoder reads where ours does not: it takes
// twenty times that.
const maxOdd = 32 << 20

// maxText bounds a document's text, and maxDocument what is made of it, in bytes, so that
// positions fit into 32 bits. A byte of text makes three where it is not UTF-8 and
// replaced, and six and more in large containers that have nothing but one another.
const (
	maxText     = 1 << 30
	maxDocument = math.MaxUint32 - largeHead
)

// errTwice is an object with the same name twice. Of such the last counts in OPA.
var errTwice = errors.New("an object has a name twice")

// parse makes a document of the text of a file in a bundle: JSON, or YAML.
func parse(text []byte) (*document, error) {
	return parseOr(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")), util.Unmarshal)
}

// parseOr makes a document of a JSON text, or of what OPA's own decoder makes of it.
func parseOr(text []byte, decode func([]byte, any) error) (*document, error) {
	d, err := parseJSON(text)
	if err == nil || len(text) > maxOdd {
		return d, err
	}
	var x any
	if err := decode(text, &x); err != nil {
		return nil, err
	}
	return fromGo(x)
}

// fromGo makes a document of what encoding/json knows.
func fromGo(x any) (*document, error) {
	b, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	return parseJSON(b)
}

// parser makes a document of a JSON text in one pass.
type parser struct {
	text []byte
	pos  int
	d    *document
	// open are the containers around pos, members the positions of what is in them.
	open    []container
	members []uint32
	// most is maxDocument.
	most int
}

// container is an array or an object that is being read.
type container struct {
	at    int
	first int // of its members
	kind  byte
}

// parseJSON takes what json.Valid takes, but for numbers that OPA cannot handle and for
// objects with the same name twice (errTwice).
func parseJSON(text []byte) (*document, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("it has more than %d bytes", maxText)
	}
	p := &parser{text: text, most: maxDocument, d: &document{b: make([]byte, 0, len(text)+largeHead), seed: maphash.MakeSeed()}}
	if err := p.run(); err != nil {
		line := 1 + bytes.Count(text[:min(p.pos, len(text))], []byte("\n"))
		return nil, fmt.Errorf("line %d: %w", line, err)
	}
	if b := p.d.b; len(b)+len(b)/4 < cap(b) {
		p.d.b = bytes.Clone(b) // there was much white space
	}
	return p.d, nil
}

func (p *parser) run() error {
	for {
		opened, err := p.value()
		if err != nil {
			return err
		}
		if opened {
			continue
		}
		if more, err := p.after(); err != nil || !more {
			return err
		}
	}
}

// value reads a value, or the beginning of a container that has members.
func (p *parser) value() (opened bool, err error) {
	if n := len(p.open); n > 0 && p.open[n-1].kind == kindArray {
		p.members = append(p.members, p.at())
	}
	switch c := p.peek(); c {
	case '{', '[':
		return p.begin(c)
	case '"':
		return false, p.string()
	case 't':
		return false, p.word("true", kindTrue)
	case 'f':
		return false, p.word("false", kindFalse)
	case 'n':
		return false, p.word("null", kindNull)
	default:
		return false, p.number()
	}
}

// after reads what is between two values; more says that another one follows.
func (p *parser) after() (more bool, err error) {
	if err := p.fits(); err != nil {
		return false, err
	}
	for {
		n := len(p.open)
		c := p.peek()
		if n == 0 {
			if p.pos < len(p.text) {
				return false, p.unexpected("after the value")
			}
			return false, nil
		}
		p.pos++
		switch in := p.open[n-1]; {
		case c == ',' && in.kind == kindObject:
			return true, p.name()
		case c == ',':
			return true, nil
		case c == '}' && in.kind == kindObject, c == ']' && in.kind == kindArray:
			if err := p.close(); err != nil {
				return false, err
			}
		default:
			p.pos--
			return false, p.unexpected("instead of a comma or the end of a container")
		}
	}
}

// begin opens a container and closes it if it is empty.
func (p *parser) begin(c byte) (opened bool, err error) {
	if len(p.open) >= maxDepth {
		return false, fmt.Errorf("more than %d containers in each other", maxDepth)
	}
	if err := p.fits(); err != nil {
		return false, err
	}
	p.pos++
	kind, end := byte(kindArray), byte(']')
	if c == '{' {
		kind, end = kindObject, '}'
	}
	p.open = append(p.open, container{at: len(p.d.b), first: len(p.members), kind: kind})
	p.d.b = append(p.d.b, make([]byte, largeHead)...)
	switch {
	case p.peek() == end:
		p.pos++
		return false, p.close()
	case kind == kindObject:
		return true, p.name()
	}
	return true, nil
}

// name reads the name of a member and the colon.
func (p *parser) name() error {
	if p.peek() != '"' {
		return p.unexpected("instead of a name")
	}
	p.members = append(p.members, p.at())
	if err := p.string(); err != nil {
		return err
	}
	if p.peek() != ':' {
		return p.unexpected("instead of a colon")
	}
	p.pos++
	return nil
}

// close completes the innermost container: its head, and its table if it needs one.
func (p *parser) close() error {
	c := p.open[len(p.open)-1]
	p.open = p.open[:len(p.open)-1]
	members := p.members[c.first:]
	p.members = p.members[:c.first]
	d := p.d
	body := len(d.b) - c.at - largeHead
	tables := len(d.tables)
	if c.kind == kindObject {
		if err := d.indexNames(members); err != nil {
			return err
		}
	} else if len(members) > fewMembers && body > smallBody {
		d.tables = append(d.tables, members...)
	}
	if body <= smallBody {
		// Nothing in there has a table, and whoever holds a position holds one before it.
		d.tables = d.tables[:tables]
		d.b[c.at], d.b[c.at+1] = c.kind-kindArray+kindSmallArray, byte(body)
		copy(d.b[c.at+smallHead:], d.b[c.at+largeHead:])
		d.b = d.b[:c.at+smallHead+body]
		return nil
	}
	head := d.b[c.at:]
	head[0] = c.kind
	binary.LittleEndian.PutUint32(head[1:], uint32(body))         //nolint:gosec // see maxText
	binary.LittleEndian.PutUint32(head[5:], uint32(len(members))) //nolint:gosec // the same
	if len(d.tables) > tables {
		binary.LittleEndian.PutUint32(head[9:], uint32(tables+1)) //nolint:gosec // the same
	}
	return nil
}

// indexNames makes a table for an object of many members, and finds out whether a name
// is there twice.
func (d *document) indexNames(members []uint32) error {
	name := func(at uint32) []byte {
		from, to := d.text(int(at))
		return d.b[from:to]
	}
	if len(members) <= fewMembers {
		for i, a := range members {
			for _, b := range members[:i] {
				if bytes.Equal(name(a), name(b)) {
					return errTwice
				}
			}
		}
		return nil
	}
	n := len(members) + len(members)/2
	d.tables = append(d.tables, uint32(n)) //nolint:gosec // see maxText
	from := len(d.tables)
	d.tables = append(d.tables, make([]uint32, n)...)
	slots := d.tables[from:]
	for _, at := range members {
		k := name(at)
		i := slot(maphash.Bytes(d.seed, k), n)
		for ; slots[i] != 0; i = next(i, n) {
			if bytes.Equal(name(slots[i]-1), k) {
				return errTwice
			}
		}
		slots[i] = at + 1
	}
	return nil
}

// peek gives the next byte that is no space, 0 at the end.
func (p *parser) peek() byte {
	for p.pos < len(p.text) {
		switch c := p.text[p.pos]; c {
		case ' ', '\n', '\t', '\r':
			p.pos++
		default:
			return c
		}
	}
	return 0
}

// fits refuses what has become too large, before anything takes its position.
func (p *parser) fits() error {
	if len(p.d.b) > p.most {
		return fmt.Errorf("it takes more than %d bytes", p.most)
	}
	return nil
}

// at is the position of what is written next.
func (p *parser) at() uint32 { return uint32(len(p.d.b)) } //nolint:gosec // see maxText

func (p *parser) unexpected(where string) error {
	if p.pos >= len(p.text) {
		return errors.New("unexpected end")
	}
	return fmt.Errorf("unexpected %q %s", p.text[p.pos], where)
}

func (p *parser) word(w string, kind byte) error {
	if !bytes.HasPrefix(p.text[p.pos:], []byte(w)) {
		return p.unexpected("instead of a value")
	}
	p.pos += len(w)
	p.d.b = append(p.d.b, kind)
	return nil
}

// string reads a text in quotes.
func (p *parser) string() error {
	from, odd := p.pos+1, false
	i := from
	for {
		if i >= len(p.text) {
			p.pos = i
			return errors.New("unexpected end")
		}
		c := p.text[i]
		if c == '"' {
			break
		}
		switch {
		case c == '\\':
			odd = true
			i++
		case c < ' ':
			p.pos = i
			return p.unexpected("in a text")
		}
		i++
	}
	s := p.text[from:i]
	if odd || !utf8.Valid(s) {
		// Escapes, and what is to be replaced, as encoding/json has it.
		var plain string
		if err := json.Unmarshal(p.text[p.pos:i+1], &plain); err != nil {
			return err
		}
		s = []byte(plain)
	}
	p.pos = i + 1
	p.d.b = appendText(p.d.b, kindText, shortText, s)
	return nil
}

func appendText(b []byte, long, short byte, s []byte) []byte {
	if len(s) <= maxShort {
		b = append(b, short|byte(len(s)))
	} else {
		b = binary.AppendUvarint(append(b, long), uint64(len(s)))
	}
	return append(b, s...)
}

// number reads a number as RFC 8259, section 6, has it.
func (p *parser) number() error {
	from := p.pos
	i := from
	digits := func() bool {
		begin := i
		for i < len(p.text) && p.text[i] >= '0' && p.text[i] <= '9' {
			i++
		}
		return i > begin
	}
	is := func(set string) bool {
		if i < len(p.text) && bytes.IndexByte([]byte(set), p.text[i]) >= 0 {
			i++
			return true
		}
		return false
	}
	is("-")
	ok := is("0") || digits()
	if ok && is(".") {
		ok = digits()
	}
	exponent := false
	if ok && is("eE") {
		exponent = true
		is("+-")
		ok = digits()
	}
	if !ok {
		p.pos = i
		return p.unexpected("instead of a value")
	}
	s := p.text[from:i]
	if exponent {
		if _, err := ast.NumberChecked(string(s)); err != nil {
			return err
		}
	}
	p.pos = i
	p.d.b = appendText(p.d.b, kindNumber, shortNumber, s)
	return nil
}
