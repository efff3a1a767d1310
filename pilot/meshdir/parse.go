package meshdir

import (
	"crypto/sha256"
	"maps"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	meshv1 "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/writ-mesh/writ/pilot/model"
)

// meshFile is the name of the file that holds the bare MeshConfig.
const meshFile = "mesh.yaml"

// object is one document that was read and checked by itself.
type object struct {
	meta model.Meta
	// spec is a message of istio.io/api, an object of Kubernetes, or one of our
	// specifications.
	spec any
	root *yaml.Node
	base string
	// policy is the object in a mesh, if it is an AuthorizationPolicy; made when first
	// asked for, so that who goes by it sees whether it changed.
	policy *model.AuthorizationPolicy
}

// id names the object among all: kind, namespace and name.
func (o *object) id() string {
	if o.meta.Namespace == "" {
		return strings.TrimSpace(o.meta.Kind + " " + o.meta.Name)
	}
	return o.meta.ID()
}

// report starts a list of problems about the object.
func (o *object) report() *report {
	return &report{file: o.meta.File, object: o.id(), root: o.root, base: o.base}
}

// parsedFile is what one file holds.
type parsedFile struct {
	name string
	// objects are those without errors.
	objects []*object
	mesh    *meshv1.MeshConfig
	// rego is the content of a .rego file, never nil for one.
	rego     []byte
	problems []Problem
	// data is the content, sum its hash.
	data []byte
	sum  [sha256.Size]byte
}

func (f *parsedFile) bad() bool { return len(Errors(f.problems)) > 0 }

// parser reads files one by one.
type parser struct {
	kinds map[string]kindInfo
	later map[string]string
	// instances is set for the instances file, which alone may hold instances.
	instances bool
	options   *Options
}

func newParser(options *Options, instances bool) *parser {
	return &parser{kinds: knownKinds(), later: laterKinds(), instances: instances, options: options}
}

// isConfiguration says whether a file name, relative to the mesh directory with
// slashes, is one of configuration.
func isConfiguration(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".") {
			return false
		}
	}
	if name == "checks.yaml" {
		return false
	}
	switch path.Ext(name) {
	case ".yaml", ".yml", ".rego":
		return true
	}
	return false
}

// parse reads one file.
func (p *parser) parse(name string, data []byte) *parsedFile {
	f := &parsedFile{name: name, data: data, sum: sha256.Sum256(data)}
	switch {
	case len(data) > maxFileSize:
		f.data = nil
		f.problems = append(f.problems, Problem{File: name, Message: tooLarge})
		return f
	case path.Ext(name) == ".rego":
		f.rego = append([]byte{}, data...)
		return f
	}
	meshDocuments := 0
	for _, c := range splitDocuments(data) {
		if isBlank(c.text) {
			continue
		}
		r := &report{file: name}
		for _, root := range parseDocuments(c, r) {
			if name == meshFile && !p.instances {
				meshDocuments++
				p.parseMesh(f, root, meshDocuments)
			} else {
				p.parseDocument(f, root, "")
			}
		}
		f.problems = append(f.problems, r.problems...)
	}
	return f
}

func (p *parser) parseMesh(f *parsedFile, root *yaml.Node, count int) {
	r := &report{file: f.name, object: "MeshConfig", root: root}
	if count > 1 {
		r.at(root, "", "mesh.yaml holds one bare MeshConfig: move other documents into another file")
	} else if get(root, "kind") != nil {
		r.at(locate(root, "kind"), "kind", "mesh.yaml holds a bare MeshConfig without apiVersion and kind: move this document into another file")
	} else {
		f.mesh = parseMeshConfig(r)
	}
	f.problems = append(f.problems, r.problems...)
	if r.failed() && count == 1 {
		f.mesh = nil
	}
}

// parseDocument reads one object, or each of a List.
func (p *parser) parseDocument(f *parsedFile, root *yaml.Node, base string) {
	r := &report{file: f.name, root: root, base: base}
	defer func() { f.problems = append(f.problems, r.problems...) }()
	if root.Kind != yaml.MappingNode {
		r.at(root, "", "want an object with apiVersion, kind and metadata, got %s", describe(root))
		return
	}
	if kind := get(root, "kind"); kind != nil && base == "" {
		if versions := p.listOf(kind.Value); versions != nil {
			p.parseList(f, r, kind.Value, versions)
			return
		}
	}
	kind, info, ok := p.identify(r)
	if !ok {
		return
	}
	o := &object{root: root, base: base}
	o.meta.Ref = model.Ref{Kind: kind, File: f.name, Line: root.Line}
	p.decode(r, o, info)
	if r.failed() {
		return
	}
	info.validate(&checker{report: r, object: o, options: p.options})
	if !r.failed() {
		f.objects = append(f.objects, o)
	}
}

// listOf gives the apiVersions of a List, of anything or of one kind; nil for what is
// no list.
func (p *parser) listOf(kind string) []string {
	of, list := strings.CutSuffix(kind, "List")
	switch info, known := p.kinds[of]; {
	case !list || p.kinds[kind].versions != nil:
		return nil
	case of == "":
		return []string{"v1"}
	case known:
		return info.versions
	}
	return nil
}

func (p *parser) parseList(f *parsedFile, r *report, kind string, versions []string) {
	for i := 0; i+1 < len(r.root.Content); i += 2 {
		key, value := r.root.Content[i], r.root.Content[i+1]
		switch key.Value {
		case "apiVersion":
			if !slices.Contains(versions, value.Value) {
				r.at(key, "apiVersion", "a %s is of apiVersion %s, got %q", kind, strings.Join(versions, " or "), value.Value)
			}
		case "kind", "metadata":
		case "items":
			if value.Kind != yaml.SequenceNode {
				r.at(value, "items", "want a list of objects, got %s", describe(value))
				return
			}
			for j, item := range value.Content {
				p.parseDocument(f, item, index("items", j)+".")
			}
		default:
			r.at(key, key.Value, "unknown field %q%s", key.Value, didYouMean(key.Value, []string{"apiVersion", "kind", "metadata", "items"}))
		}
	}
}

// decode reads metadata and specification.
func (p *parser) decode(r *report, o *object, info kindInfo) {
	r.object = o.meta.Kind
	p.decodeMetadata(r, o, info)
	if r.failed() && o.meta.Name == "" {
		return
	}
	r.object = o.id()
	allowed := []string{"apiVersion", "kind", "metadata", "spec", "status"}
	if info.whole {
		o.spec = info.value()
		r.decodeStruct(r.root, o.spec, "")
		return
	}
	for i := 0; i+1 < len(r.root.Content); i += 2 {
		if key := r.root.Content[i]; !slices.Contains(allowed, key.Value) {
			r.at(key, key.Value, "unknown field %q%s", key.Value, didYouMean(key.Value, allowed))
		}
	}
	spec := get(r.root, "spec")
	if spec == nil || isNull(spec) {
		spec = &yaml.Node{Kind: yaml.MappingNode, Line: r.root.Line, Column: r.root.Column}
	}
	if info.message != nil {
		m := info.message()
		r.decodeMessage(spec, m.ProtoReflect(), "spec")
		o.spec = m
		return
	}
	o.spec = info.value()
	r.decodeStruct(spec, o.spec, "spec")
}

func (p *parser) decodeMetadata(r *report, o *object, info kindInfo) {
	node := get(r.root, "metadata")
	if node == nil || isNull(node) {
		r.at(r.root, "metadata", "the document has no metadata: write at least metadata.name")
		return
	}
	var m metav1.ObjectMeta
	if name, ns := get(node, "name"), get(node, "namespace"); name != nil && !info.cluster {
		r.object = o.meta.Kind + " " + defaultNamespace + "/" + name.Value
		if ns != nil && ns.Value != "" {
			r.object = o.meta.Kind + " " + ns.Value + "/" + name.Value
		}
	}
	strict := r
	if info.whole { // reading the whole object says it again
		strict = &report{file: r.file}
	}
	strict.decodeStruct(node, &m, "metadata")
	o.meta.Name, o.meta.Namespace = m.Name, m.Namespace
	o.meta.Labels, o.meta.Annotations = m.Labels, m.Annotations
	o.meta.Created = m.CreationTimestamp.Time
	if info.cluster {
		o.meta.Namespace = ""
	} else if o.meta.Namespace == "" {
		o.meta.Namespace = defaultNamespace
	}
	r.object = o.id()
	checkMetadata(r, o)
}

func checkMetadata(r *report, o *object) {
	switch name := o.meta.Name; {
	case name == "":
		r.errorf("metadata.name", "the object has no name")
	case !isSubdomain(name):
		r.errorf("metadata.name", "%q is not a valid name: use lower-case letters, digits, '-' and '.', at most 253", shorten(name))
	}
	if ns := o.meta.Namespace; ns != "" && !isLabel(ns) {
		r.errorf("metadata.namespace", "%q is not a valid namespace: use lower-case letters, digits and '-', at most 63", shorten(ns))
	}
	for _, k := range slices.Sorted(maps.Keys(o.meta.Labels)) {
		if problem := labelProblem(k, o.meta.Labels[k]); problem != "" {
			r.errorf("metadata.labels["+k+"]", "%s", problem)
		}
	}
	checkAnnotations(r, o)
}

// The names that configuration relies on.
const (
	defaultNamespace = "default"
	domainSuffix     = "cluster.local"
)
