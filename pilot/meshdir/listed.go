package meshdir

import (
	"cmp"
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/writ-mesh/writ/pilot/model"
)

// Listed is an object as its author wrote it.
type Listed struct {
	model.Ref
	// Object is the whole document; of a Secret without what is secret in it.
	Object *yaml.Node
}

// hidden stands for what is secret.
const hidden = "(not shown)"

// Objects gives the objects of files, sorted by kind, namespace and name. What has errors
// is left out.
func Objects(contents map[string][]byte) []Listed {
	var out []Listed
	p := newParser(new(Options), false)
	for _, name := range slices.Sorted(maps.Keys(contents)) {
		if !isConfiguration(name) {
			continue
		}
		for _, o := range p.parse(name, contents[name]).objects {
			if o.meta.Kind == "Secret" {
				// kubectl keeps what was applied in an annotation.
				hide(get(o.root, "data"))
				hide(get(o.root, "stringData"))
				hide(get(get(o.root, "metadata"), "annotations"))
			}
			out = append(out, Listed{Ref: o.meta.Ref, Object: o.root})
		}
	}
	slices.SortStableFunc(out, func(a, b Listed) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// hide replaces the values of a mapping.
func hide(n *yaml.Node) {
	if n == nil {
		return
	}
	if n.Kind != yaml.MappingNode {
		*n = yaml.Node{Kind: yaml.ScalarNode, Value: hidden}
		return
	}
	for i := 1; i < len(n.Content); i += 2 {
		n.Content[i] = &yaml.Node{Kind: yaml.ScalarNode, Value: hidden}
	}
}

// ReadObjects gives the objects of a mesh directory, and which files cannot be read.
func ReadObjects(dir string) ([]Listed, []Problem, error) {
	files, problems, err := readDir(dir)
	if err != nil {
		return nil, nil, err
	}
	return Objects(files), problems, nil
}

// Kinds gives the kinds that can be read, sorted.
func Kinds() []string {
	kinds := knownKinds()
	delete(kinds, instanceKind)
	return slices.Sorted(maps.Keys(kinds))
}
