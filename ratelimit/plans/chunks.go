package plans

import (
	"hash/maphash"
	"io"
	"maps"
	"math/bits"
	"slices"
	"strings"
)

const (
	// minChunk and maxChunk are the least and the most bytes of a chunk, the last line of
	// which may go beyond. With a chunk for each line of a file its list would be larger
	// than its table.
	minChunk = 4 << 10
	maxChunk = 64 << 10
	// chunkMask: a line ends a chunk if its hash has none of these bits. So chunks are the
	// same again behind a line that is new or gone.
	chunkMask = 1<<6 - 1
	// maxHead is the longest head in bytes, and maxChanged how many bytes of chunks that
	// are not known are kept before a file is read as a whole.
	maxHead    = 1 << 20
	maxChanged = 8 << 20
)

// source is a file as it was read as a whole last, so that of the next one only what is
// another has to be parsed. What changed is always laid over this table: a file that is
// changed again and again leaves nothing behind.
type source struct {
	table *Table
	seed  maphash.Seed
	head  uint64 // hash of the lines above the first caller
	// chunks cover all lines behind the head, by the hash of theirs. There are none if
	// what comes behind the first caller is not about callers only.
	chunks map[uint64]chunk
}

// chunk is where the callers of some lines are in the table's base.
type chunk struct{ from, to uint32 }

// cutter cuts lines into chunks. The hash has a seed of its own: nobody who writes a file
// can have a change overlooked.
type cutter struct {
	seed maphash.Seed
	sum  uint64
	size int
}

// add takes a line and says whether it ends a chunk.
func (c *cutter) add(line []byte) (ends bool) {
	hash := maphash.Bytes(c.seed, line)
	const odd = 0x9e3779b97f4a7c15
	high, low := bits.Mul64(c.sum^hash, odd)
	c.sum = bits.RotateLeft64(c.sum, 1) ^ high ^ low ^ hash
	c.size += len(line)
	return c.size >= maxChunk || c.size >= minChunk && hash&chunkMask == 0
}

// take gives the hash of the lines so far and begins anew.
func (c *cutter) take() uint64 {
	sum := c.sum
	c.sum, c.size = 0, 0
	return sum
}

// aboutCaller says whether a line begins with the word caller.
func aboutCaller(line []byte) bool {
	words := split(nil, line)
	return len(words) > 0 && string(words[0]) == wordCaller
}

// remember notes the chunks of a file while it is read as a whole.
type remember struct {
	cutter
	base   *index
	from   int
	behind bool // the head
	source source
}

func newRemember(base *index) *remember {
	seed := maphash.MakeSeed()
	return &remember{cutter: cutter{seed: seed}, base: base, source: source{seed: seed, chunks: map[uint64]chunk{}}}
}

// before takes a line before it is parsed.
func (m *remember) before(line []byte) {
	if !m.behind && aboutCaller(line) {
		m.behind, m.source.head = true, m.take()
	}
}

// after takes a line that was parsed; all says whether it was about something else than
// one caller.
func (m *remember) after(line []byte, all bool) {
	if m.behind && all {
		m.source.chunks = nil
	}
	if ends := m.add(line); ends && m.behind {
		m.end()
	}
}

func (m *remember) end() {
	if sum := m.take(); m.source.chunks != nil {
		m.source.chunks[sum] = chunk{uint32(m.from), uint32(m.base.len())} //nolint:gosec // at most MaxCallers
	}
	m.from = m.base.len()
}

// finish gives what was noted of a table.
func (m *remember) finish(t *Table) *source {
	if m.behind {
		m.end()
	} else {
		m.source.chunks = nil
	}
	m.source.table = t
	return &m.source
}

// changed reads a file that may have changed in a few places. ok is false if it has to be
// read as a whole: because it has changed in many, or because something seems to be wrong
// with it, which is told with its line then.
func (s *source) changed(r io.Reader, maxCallers int) (t *Table, ok bool) {
	if s == nil || s.chunks == nil {
		return nil, false
	}
	d, ok := s.differences(r)
	if !ok {
		return nil, false
	}
	t = s.table
	if d.head != nil {
		if t, ok = t.headed(*d.head); !ok {
			return nil, false
		}
	}
	b := newBuilder(maxCallers)
	b.table.columns, b.table.byName, b.table.own = t.columns, maps.Clone(t.byName), slices.Clip(t.own)
	for line := range strings.Lines(d.lines) {
		if b.line([]byte(line)) != nil || b.about != wordCaller && b.about != "" {
			return nil, false
		}
	}
	return t.over(d.gone, b)
}

// differences are what a file has that a source has not, and the reverse.
type differences struct {
	head  *string // nil if it is the same
	lines string  // behind the head
	gone  []chunk
}

// differences reads a file; ok is false if they are too many.
func (s *source) differences(r io.Reader) (d differences, ok bool) {
	in, cut := newLines(r), cutter{seed: s.seed}
	var text, fresh []byte // of the chunk at hand, of those that are not known
	behind, seen := false, make(map[uint64]bool, len(s.chunks))
	end := func() {
		sum := cut.take()
		if _, known := s.chunks[sum]; !known || seen[sum] {
			fresh = append(fresh, text...)
		}
		seen[sum] = true
		text = text[:0]
	}
	for {
		line, err := in.next()
		switch {
		case err != nil:
			return d, false
		case len(line) == 0:
			if !behind {
				return d, false
			}
			end()
			for sum, c := range s.chunks {
				if !seen[sum] {
					d.gone = append(d.gone, c)
				}
			}
			d.lines = string(fresh)
			return d, len(fresh) <= maxChanged
		}
		if !behind && aboutCaller(line) {
			if behind = true; cut.take() != s.head {
				head := string(text)
				d.head = &head
			}
			text = text[:0]
		}
		text = append(text, line...)
		if ends := cut.add(line); ends && behind {
			end()
		}
		if len(fresh) > maxChanged || !behind && len(text) > maxHead {
			return d, false
		}
	}
}

// headed gives the table with the head of a file that has the same columns, and all
// plans that there were.
func (t *Table) headed(text string) (*Table, bool) {
	b := newBuilder(0)
	for line := range strings.Lines(text) {
		if b.line([]byte(line)) != nil {
			return nil, false
		}
	}
	for name := range t.byName {
		if _, stays := b.table.byName[name]; !stays {
			return nil, false
		}
	}
	out, err := t.withHead(b.table)
	return out, err == nil
}

// over lays callers that were read anew over a table of which some callers are gone. ok
// is false if they are too many, or one of them is there twice.
func (t *Table) over(gone []chunk, fresh *builder) (out *Table, ok bool) {
	next := *t
	next.own, next.changed = fresh.table.own, map[string]entry{}
	next.callers = t.base.len()
	names, again := len(t.base.text), 0
	for _, c := range gone {
		for i := c.from; i < c.to; i++ {
			name, before := t.base.name(i), t.base.entries[i]
			e := fresh.table.base.findBytes(name)
			if e == nobody {
				next.callers, names = next.callers-1, names-len(name)
			} else {
				again++
			}
			if e == nobody || !next.same(before, e) {
				next.changed[string(name)] = e
			}
		}
		if len(next.changed) > next.overlay() {
			return nil, false
		}
	}
	fresh.table.base.each(func(caller []byte, e entry) {
		switch {
		case t.base.findBytes(caller) != nobody:
			again-- // counted above, unless it is in a chunk that is still there
		case len(next.changed) <= next.overlay():
			next.changed[string(caller)] = e
			next.callers, names = next.callers+1, names+len(caller)
		}
	})
	return &next, again == 0 && len(next.changed) <= next.overlay() && next.callers <= fresh.max && names <= maxNames
}

// same says whether two entries come to the same.
func (t *Table) same(a, b entry) bool {
	if a&ownRow == 0 || b&ownRow == 0 {
		return a == b
	}
	n := len(t.columns)
	return slices.Equal(t.own[int(a&^ownRow)*n:][:n], t.own[int(b&^ownRow)*n:][:n])
}
