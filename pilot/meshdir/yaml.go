package meshdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of one document: far above what people write, far below what hurts.
const (
	maxDepth = 64
	// maxNodes counts nodes after aliases are replaced by what they stand for.
	maxNodes = 200_000
	// maxText is the bytes of all values together, counted likewise: a file is at
	// most 1 MiB, but one long text may have any number of aliases.
	maxText = 4 << 20
)

// chunk is the text of one YAML document and the number of lines before it.
type chunk struct {
	skipped int
	text    []byte
}

// splitDocuments cuts at lines that begin with "---", which in YAML end a
// document wherever they stand, so that a syntax error in one document does not
// hide the others.
func splitDocuments(data []byte) []chunk {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var out []chunk
	start, startLine, line := 0, 0, 0
	for at := 0; at < len(data); line++ {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		if at > start && isSeparator(data[at:end]) {
			out = append(out, chunk{startLine, data[start:at]})
			start, startLine = at, line
		}
		at = end
	}
	out = append(out, chunk{startLine, data[start:]})
	return out
}

func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || strings.ContainsRune(" \t\r\n", rune(rest[0])))
}

// isBlank says whether a chunk has nothing but comments, directives and marks.
func isBlank(text []byte) bool {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(bytes.TrimPrefix(line, []byte("---")))
		if len(line) > 0 && line[0] != '#' && line[0] != '%' && string(line) != "..." {
			return false
		}
	}
	return true
}

// parseDocuments parses one chunk. The nodes have the line numbers of the file,
// and neither aliases nor merge keys.
func parseDocuments(c chunk, r *report) []*yaml.Node {
	var out []*yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(c.text))
	for {
		n, err := decodeNode(decoder)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			line, message := syntaxError(err, c)
			r.at(&yaml.Node{Line: line}, "", "%s", message)
			return out
		}
		shiftLines(n, c.skipped, 0)
		if len(n.Content) == 0 || isNull(n.Content[0]) {
			continue
		}
		e := expander{r: r, budget: maxNodes, text: maxText}
		if root := e.expand(n.Content[0], 0); root != nil && !e.failed {
			out = append(out, root)
		}
	}
}

// decodeNode turns a panic of the YAML library into an error: the bytes come
// from outside.
func decodeNode(d *yaml.Decoder) (n *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml: cannot be parsed: %v", p)
		}
	}()
	n = new(yaml.Node)
	err = d.Decode(n)
	return n, err
}

var parserError = regexp.MustCompile(`^did not find expected (key|node content|',' or|'-' indicator|<document start>)`)

var unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

func syntaxError(err error, c chunk) (line int, message string) {
	line, message = c.skipped+1, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " ")); m != nil {
		n, _ := strconv.Atoi(m[1])
		line, message = c.skipped+n, m[2]
		// The library counts lines from 0 in the errors of its parser, and from 1
		// in those of its scanner.
		if parserError.MatchString(message) {
			line = min(line+1, c.skipped+1+bytes.Count(bytes.TrimRight(c.text, " \t\r\n"), []byte("\n")))
		}
	}
	lines := bytes.Split(c.text, []byte("\n"))
	if m := unknownAnchor.FindStringSubmatch(message); m != nil {
		message += ": define it with &" + m[1] + " above"
		line += max(0, slices.IndexFunc(lines, func(l []byte) bool { return bytes.Contains(l, []byte("*"+m[1])) }))
	}
	for _, i := range []int{line - c.skipped - 1, line - c.skipped} {
		if i >= 0 && i < len(lines) && bytes.HasPrefix(bytes.TrimLeft(lines[i], " "), []byte("\t")) {
			return c.skipped + i + 1, "a tab is used as indentation: YAML wants spaces"
		}
	}
	return line, "not valid YAML: " + message
}

func shiftLines(n *yaml.Node, by, depth int) {
	if by == 0 || depth > 10_000 {
		return
	}
	n.Line += by
	for _, c := range n.Content {
		shiftLines(c, by, depth+1)
	}
}

// expander copies a tree with aliases and merge keys replaced, within bounds.
type expander struct {
	r      *report
	budget int
	text   int
	failed bool
}

func (e *expander) fail(n *yaml.Node, format string, args ...any) *yaml.Node {
	if !e.failed {
		e.r.at(n, "", format, args...)
	}
	e.failed = true
	return nil
}

func (e *expander) expand(n *yaml.Node, depth int) *yaml.Node {
	if e.failed {
		return nil
	}
	if depth > maxDepth {
		return e.fail(n, "nested deeper than %d levels (or an alias that contains itself): flatten it", maxDepth)
	}
	if e.budget--; e.budget < 0 {
		return e.fail(n, "more than %d values once aliases are expanded: split the document", maxNodes)
	}
	if e.text -= len(n.Value); e.text < 0 {
		return e.fail(n, "more than %d MiB of text once aliases are expanded: split the document", maxText>>20)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return e.expand(n.Alias, depth+1)
	case yaml.MappingNode:
		return e.mapping(n, depth)
	case yaml.SequenceNode:
		out := *n
		out.Content = make([]*yaml.Node, 0, len(n.Content))
		for _, c := range n.Content {
			out.Content = append(out.Content, e.expand(c, depth+1))
		}
		return &out
	default:
		return n
	}
}

func (e *expander) mapping(n *yaml.Node, depth int) *yaml.Node {
	out := *n
	out.Content = make([]*yaml.Node, 0, len(n.Content))
	lines := make(map[string]int, len(n.Content)/2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			return e.fail(key, "a key must be a single word, not a list or a mapping")
		}
		value := e.expand(n.Content[i+1], depth+1)
		if e.text -= len(key.Value); e.failed {
			return nil
		}
		if key.Tag == "!!merge" {
			merged = append(merged, value)
			continue
		}
		if line, ok := lines[key.Value]; ok {
			return e.fail(key, "key %q is given twice, first in line %d: remove one", key.Value, line)
		}
		lines[key.Value] = key.Line
		out.Content = append(out.Content, key, value)
	}
	for _, m := range merged {
		e.merge(&out, m, lines)
	}
	return &out
}

// merge adds what a "<<" key brings; keys that are there already win.
func (e *expander) merge(into, from *yaml.Node, have map[string]int) {
	switch from.Kind {
	case yaml.SequenceNode:
		for _, c := range from.Content {
			e.merge(into, c, have)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(from.Content); i += 2 {
			key := from.Content[i]
			if _, ok := have[key.Value]; !ok {
				have[key.Value] = key.Line
				into.Content = append(into.Content, key, from.Content[i+1])
			}
		}
	default:
		e.fail(from, "a merge key << needs an alias of a mapping")
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// get gives the value of a key in a mapping, nil if it is not there.
func get(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// describe names what a node is, for messages about wrong types.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!bool":
		return "the boolean " + n.Value
	case "!!null":
		return "nothing"
	}
	return "the text " + strconv.Quote(shorten(n.Value))
}

func shorten(s string) string {
	const most = 40
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
