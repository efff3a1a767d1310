package rego

import "strings"

// Paths are paths below data, as one text: there may be very many.
type Paths string

// Path is one of them; the empty one is data itself.
type Path string

const (
	nameEnd = "\x00"
	pathEnd = "\x01"
)

// pathOf is false if a name cannot be written so.
func pathOf(names []string) (Paths, bool) {
	var out strings.Builder
	ok := true
	for _, name := range names {
		ok = ok && !strings.ContainsAny(name, nameEnd+pathEnd)
		out.WriteString(name)
		out.WriteString(nameEnd)
	}
	out.WriteString(pathEnd)
	return Paths(out.String()), ok
}

// Each calls visit with each path.
func (p Paths) Each(visit func(Path)) {
	for len(p) > 0 {
		path, rest, _ := strings.Cut(string(p), pathEnd)
		visit(Path(path))
		p = Paths(rest)
	}
}

// Names are those of the path.
func (p Path) Names() []string {
	if p == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(p), nameEnd), nameEnd)
}

// Around is the path without its last name.
func (p Path) Around() Path {
	return p[:strings.LastIndex(strings.TrimSuffix(string(p), nameEnd), nameEnd)+1]
}

// next cuts the first name off.
func (p Path) next() (name string, rest Path) {
	name, after, _ := strings.Cut(string(p), nameEnd)
	return name, Path(after)
}
