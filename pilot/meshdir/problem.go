package meshdir

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Severity says whether a problem keeps its object from being used.
type Severity int

// The severities.
const (
	// Error: the object, or the file if it cannot be read at all, is refused.
	Error Severity = iota
	// Warning: the object is used, but probably does not do what was meant.
	Warning
)

// String gives "error" or "warning".
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// MarshalText makes JSON show the severity by name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (s *Severity) UnmarshalText(text []byte) error {
	switch string(text) {
	case "error":
		*s = Error
	case "warning":
		*s = Warning
	default:
		return fmt.Errorf("unknown severity %q: it is error or warning", text)
	}
	return nil
}

// Problem is something wrong in the mesh directory.
type Problem struct {
	// File is relative to the mesh directory; empty if no file is at fault.
	File string `json:"file,omitempty"`
	// Line and Column are 1-based, 0 if unknown.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
	// Object is "<kind> <namespace>/<name>", as far as it is known.
	Object string `json:"object,omitempty"`
	// Field is the path in the document, for example spec.http[0].match[0].uri.
	Field string `json:"field,omitempty"`
	// Message says what is wrong and what to do.
	Message  string   `json:"message"`
	Severity Severity `json:"severity"`
	// InForce says what is in force in place of a file with an error: "earlier",
	// its last good content, or "nothing". It is empty where that is not known, or
	// where only the object is left out.
	InForce string `json:"inForce,omitempty"`
}

// What may be in force in place of a file with an error.
const (
	InForceEarlier = "earlier"
	InForceNothing = "nothing"
)

// String gives "file:line: object: field: message" without the parts that are
// unknown; a warning has "warning: " before the message.
func (p Problem) String() string {
	var parts []string
	switch {
	case p.File != "" && p.Line > 0:
		parts = append(parts, fmt.Sprintf("%s:%d", p.File, p.Line))
	case p.File != "":
		parts = append(parts, p.File)
	}
	for _, s := range []string{p.Object, p.Field} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	message := p.Message
	if p.Severity == Warning {
		message = "warning: " + message
	}
	return strings.Join(append(parts, message), ": ")
}

// Errors gives those of problems that are errors.
func Errors(problems []Problem) []Problem {
	var out []Problem
	for _, p := range problems {
		if p.Severity == Error {
			out = append(out, p)
		}
	}
	return out
}

// sortProblems orders by place, so that the same directory always reads the same.
func sortProblems(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Field, b.Field), cmp.Compare(a.Message, b.Message))
	})
}

// maxProblems bounds what one object may report, so that a large broken file
// gives a readable answer.
const maxProblems = 100

// report collects the problems of one document.
type report struct {
	file   string
	object string
	// root is the document's mapping, to find the line of a field.
	root *yaml.Node
	// base is put before every field, for objects inside a List: "items[2].".
	base string
	// quoted lets numbers be in quotes, as the JSON form of protocol buffers does.
	quoted   bool
	problems []Problem
}

func (r *report) add(n *yaml.Node, field string, severity Severity, format string, args ...any) {
	if len(r.problems) >= maxProblems {
		return
	}
	p := Problem{File: r.file, Object: r.object, Field: r.base + field, Message: fmt.Sprintf(format, args...), Severity: severity}
	if field == "" {
		p.Field = strings.TrimSuffix(r.base, ".")
	}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	r.problems = append(r.problems, p)
}

// at reports an error at a node.
func (r *report) at(n *yaml.Node, field, format string, args ...any) {
	r.add(n, field, Error, format, args...)
}

// errorf reports an error of a field, which is looked up in the document; of a
// field that is not there the nearest parent gives the line.
func (r *report) errorf(field, format string, args ...any) {
	r.add(locate(r.root, field), field, Error, format, args...)
}

// warnf reports a warning of a field.
func (r *report) warnf(field, format string, args ...any) {
	r.add(locate(r.root, field), field, Warning, format, args...)
}

// failed says whether there is an error among the problems.
func (r *report) failed() bool {
	return slices.ContainsFunc(r.problems, func(p Problem) bool { return p.Severity == Error })
}

// index gives the path of an element of a list.
func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

// locate finds the node of a path such as spec.http[0].headers[end-user], or the
// nearest parent that exists: of a field its key, so that the line is where the
// name is written.
func locate(root *yaml.Node, path string) *yaml.Node {
	place, value := root, root
	for path != "" && value != nil {
		var segment string
		segment, path = cutSegment(path)
		key, next := child(value, segment)
		if next == nil {
			break
		}
		place, value = next, next
		if key != nil {
			place = key
		}
	}
	return place
}

// cutSegment splits the first name, or the first [index or key], from a path.
func cutSegment(path string) (segment, rest string) {
	if strings.HasPrefix(path, "[") {
		if end := strings.Index(path, "]"); end > 0 {
			return path[1:end], strings.TrimPrefix(path[end+1:], ".")
		}
	}
	if end := strings.IndexAny(path, ".["); end >= 0 {
		return path[:end], strings.TrimPrefix(path[end:], ".")
	}
	return path, ""
}

func child(n *yaml.Node, segment string) (key, value *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if k := n.Content[i].Value; k == segment || camelCase(k) == segment {
				return n.Content[i], n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		var i int
		if _, err := fmt.Sscanf(segment, "%d", &i); err == nil && i >= 0 && i < len(n.Content) {
			return nil, n.Content[i]
		}
	}
	return nil, nil
}

// camelCase turns a field's name in a .proto file into its JSON name.
func camelCase(s string) string {
	parts := strings.Split(s, "_")
	for i := 1; i < len(parts); i++ {
		if parts[i] != "" {
			parts[i] = strings.ToUpper(parts[i][:1]) + parts[i][1:]
		}
	}
	return strings.Join(parts, "")
}
