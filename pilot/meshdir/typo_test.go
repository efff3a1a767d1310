package meshdir

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// freeKeys are the fields whose keys are the user's own words.
var freeKeys = []string{
	"labels", "annotations", "matchLabels", "headers", "queryParams", "withoutHeaders", "set", "add", "env", "stringData", "data",
	"proxyMetadata", "portLevelMtls", "status",
}

// fieldKeys lists the keys below n that are names of fields.
func fieldKeys(n *yaml.Node, parent, kind string, out *[]*yaml.Node) {
	switch n.Kind {
	case yaml.DocumentNode, yaml.SequenceNode:
		for _, c := range n.Content {
			fieldKeys(c, parent, kind, out)
		}
	case yaml.MappingNode:
		if k := get(n, "kind"); k != nil {
			kind = k.Value
		}
		free := slices.Contains(freeKeys, parent) && get(n, "request") == nil && get(n, "response") == nil ||
			parent == "selector" && (kind == "Service" || kind == "Gateway") ||
			parent == "ports" && (kind == "WorkloadEntry" || get(n, "name") == nil)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if !free {
				*out = append(*out, key)
			}
			if parent != "status" && key.Value != "status" {
				fieldKeys(n.Content[i+1], key.Value, kind, out)
			}
		}
	}
}

// typos are what a hand does to a word: two letters swapped, one doubled, one
// left out, one replaced by a neighbour.
func typos(word string) []string {
	i := len(word) / 2
	out := []string{word[:i] + word[i:i+1] + word[i:], word[:i] + "x" + word[i+1:]}
	if word[i-1] != word[i] {
		out = append(out, word[:i-1]+word[i:i+1]+word[i-1:i]+word[i+1:])
	}
	if dropped := word[:i] + word[i+1:]; len(word) > 4 {
		out = append(out, dropped)
	}
	return out
}

func replaceAt(data []byte, line, column int, from, to string) []byte {
	lines := bytes.Split(data, []byte("\n"))
	l := lines[line-1]
	lines[line-1] = slices.Concat(l[:column-1], []byte(to), l[column-1+len(from):])
	return bytes.Join(lines, []byte("\n"))
}

// Every single-letter mistake in a field's name is found, in its line.
func TestTyposAreFound(t *testing.T) {
	files := exampleFiles(t)
	caught, suggested := 0, 0
	p := newParser(&Options{}, false)
	for name, data := range files {
		for _, c := range splitDocuments(data) {
			var n yaml.Node
			if err := yaml.Unmarshal(c.text, &n); err != nil {
				t.Fatal(err)
			}
			var keys []*yaml.Node
			fieldKeys(&n, "", "", &keys)
			for _, key := range keys {
				for _, typo := range typos(key.Value) {
					f := p.parse(name, replaceAt(c.text, key.Line, key.Column, key.Value, typo))
					found, named := judge(f.problems, key)
					if !found {
						t.Errorf("%s:%d: %q written as %q: %v", name, c.skipped+key.Line, key.Value, typo, f.problems)
					}
					if named {
						suggested++
					}
					caught++
				}
			}
		}
	}
	if caught < 100 {
		t.Errorf("only %d mistakes were tried", caught)
	}
	if suggested*10 < caught*8 {
		t.Errorf("only %d of %d mistakes name the right field", suggested, caught)
	}
	t.Logf("%d mistakes, %d with the right field named", caught, suggested)
}

// judge says whether a mistake in key was found in its line, and whether the
// right name was suggested. Without its kind or metadata a document is refused
// as a whole, in its first line.
func judge(problems []Problem, key *yaml.Node) (found, named bool) {
	top := slices.Contains([]string{"kind", "apiVersion", "metadata", "name"}, key.Value)
	for _, p := range Errors(problems) {
		found = found || top || p.Line == key.Line
		named = named || strings.Contains(p.Message, fmt.Sprintf("did you mean %q", key.Value))
	}
	return found, named
}
