package replay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/writ-mesh/writ/pilot/model"
)

// Enforce changes the text of a file so that a policy in it enforces what it observed:
// one value of one object, in its place. All else, comments included, stays as it is.
func Enforce(text []byte, policy model.Ref) ([]byte, error) {
	path, value := []string{"spec", "mode"}, "enforce"
	if policy.Kind == "AuthorizationPolicy" {
		path, value = []string{"metadata", "annotations", model.DryRunAnnotation}, `"false"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s is not in %s", policy.ID(), policy.File)
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", policy.File, err)
		}
		if len(doc.Content) != 1 || !is(doc.Content[0], policy) {
			continue
		}
		at := child(doc.Content[0], path...)
		if at == nil || at.Kind != yaml.ScalarNode || at.Anchor != "" {
			return nil, fmt.Errorf("%s: %s of %s is not written out as a plain value: change it by hand", policy.File, strings.Join(path, "."), policy.ID())
		}
		return replace(text, at, value)
	}
}

func is(object *yaml.Node, policy model.Ref) bool {
	text := func(path ...string) string {
		if n := child(object, path...); n != nil {
			return n.Value
		}
		return ""
	}
	namespace := text("metadata", "namespace")
	if namespace == "" {
		namespace = "default"
	}
	return text("kind") == policy.Kind && text("metadata", "name") == policy.Name && namespace == policy.Namespace
}

func child(n *yaml.Node, path ...string) *yaml.Node {
	for _, key := range path {
		if n.Kind != yaml.MappingNode {
			return nil
		}
		var next *yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				next = n.Content[i+1]
			}
		}
		if next == nil {
			return nil
		}
		n = next
	}
	return n
}

// replace puts value where the scalar stands.
func replace(text []byte, at *yaml.Node, value string) ([]byte, error) {
	start := 0
	for range at.Line - 1 {
		i := bytes.IndexByte(text[start:], '\n')
		if i < 0 {
			return nil, errors.New("the value is not where it was")
		}
		start += i + 1
	}
	// Columns count characters.
	for range at.Column - 1 {
		if start >= len(text) {
			return nil, errors.New("the value is not where it was")
		}
		start++
		for start < len(text) && text[start]&0xc0 == 0x80 {
			start++
		}
	}
	old := at.Value
	if at.Style&yaml.DoubleQuotedStyle != 0 {
		old = `"` + old + `"`
	} else if at.Style&yaml.SingleQuotedStyle != 0 {
		old = "'" + old + "'"
	}
	if !bytes.HasPrefix(text[start:], []byte(old)) {
		return nil, fmt.Errorf("line %d: the value %s is not written as it is read: change it by hand", at.Line, at.Value)
	}
	out := append([]byte{}, text[:start]...)
	out = append(out, value...)
	return append(out, text[start+len(old):]...), nil
}
