package descriptors

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/ratelimit/limit"
)

const (
	// maxFile bounds a file in bytes, and maxNodes the values in it once aliases
	// are followed: a small file can name a large tree by them.
	maxFile  = 16 << 20
	maxNodes = 1_000_000
	maxDepth = 32
	// maxPath bounds keys and values from the domain to a descriptor, in bytes.
	maxPath = 1024
)

// Parse reads the domains of one file; name stands for it in errors, which have
// the form "<file>:<line>: ...". Of a file with a mistake nothing is taken.
func parse(name string, data []byte) ([]*Domain, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: has %d bytes, at most %d are read", name, len(data), maxFile)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var domains []*Domain
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s%s", name, yamlError(err))
		}
		p := &parser{file: name}
		d, err := p.domain(&doc)
		if err != nil {
			return nil, err
		}
		if d != nil {
			domains = append(domains, d)
		}
	}
	for i, d := range domains {
		for _, e := range domains[:i] {
			if e.Name == d.Name {
				return nil, fmt.Errorf("%s: domain %q is already at %s", d.At(), d.Name, e.At())
			}
		}
	}
	return domains, nil
}

// yamlError turns "yaml: line 3: ..." into ":3: ...".
func yamlError(err error) string {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return ":" + rest
	}
	return ": " + text
}

type parser struct {
	file  string
	nodes int
	depth int          // of mappings within merges: an anchor may contain itself
	open  []*yaml.Node // the lists of descriptors being read, outermost first
}

func (p *parser) errorf(n *yaml.Node, format string, args ...any) error {
	if n.Line == 0 { // it came without lines
		return fmt.Errorf("%s: %s", p.file, fmt.Sprintf(format, args...))
	}
	return fmt.Errorf("%s:%d: %s", p.file, n.Line, fmt.Sprintf(format, args...))
}

// field is one key of a mapping and its value, aliases followed.
type field struct {
	name       string
	key, value *yaml.Node
}

// fields gives a mapping's fields with merge keys ("<<") resolved. Keys that are
// not in known, or are there twice, are errors.
func (p *parser) fields(n *yaml.Node, what string, known ...string) ([]field, error) {
	n, err := p.follow(n)
	if err != nil {
		return nil, err
	}
	if p.depth++; p.depth > maxDepth {
		return nil, p.errorf(n, "merges are nested too deep")
	}
	defer func() { p.depth-- }()
	if n.Kind != yaml.MappingNode {
		return nil, p.errorf(n, "%s must be a mapping", what)
	}
	var out, merged []field
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, err := p.follow(n.Content[i])
		if err != nil {
			return nil, err
		}
		v, err := p.follow(n.Content[i+1])
		if err != nil {
			return nil, err
		}
		if k.Kind == yaml.ScalarNode && k.Tag == "!!merge" {
			more, err := p.merge(v, what, known)
			if err != nil {
				return nil, err
			}
			merged = append(merged, more...)
			continue
		}
		if k.Kind != yaml.ScalarNode || k.Tag != "!!str" || !slices.Contains(known, k.Value) {
			return nil, p.errorf(k, "unknown key %q in %s; known are %s", k.Value, what, strings.Join(known, ", "))
		}
		if has(out, k.Value) {
			return nil, p.errorf(k, "%s is there twice", k.Value)
		}
		out = append(out, field{k.Value, k, v})
	}
	for _, f := range merged { // what stands in the mapping itself wins
		if !has(out, f.name) {
			out = append(out, f)
		}
	}
	return out, nil
}

func (p *parser) merge(v *yaml.Node, what string, known []string) ([]field, error) {
	if v.Kind != yaml.SequenceNode {
		return p.fields(v, what, known...)
	}
	var out []field
	for _, m := range v.Content {
		more, err := p.fields(m, what, known...)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// key is a key that a mapping may have, and what is done with its value.
type key struct {
	name string
	read func(field) error
}

// into reads a value to where it belongs.
func into[T any](to *T, read func(field) (T, error)) func(field) error {
	return func(f field) (err error) {
		*to, err = read(f)
		return err
	}
}

// read reads a mapping that may have these keys.
func (p *parser) read(n *yaml.Node, what string, keys ...key) error {
	known := make([]string, len(keys))
	for i, k := range keys {
		known[i] = k.name
	}
	fields, err := p.fields(n, what, known...)
	if err != nil {
		return err
	}
	for _, f := range fields {
		if err := keys[slices.Index(known, f.name)].read(f); err != nil {
			return err
		}
	}
	return nil
}

func has(fields []field, name string) bool {
	return slices.ContainsFunc(fields, func(f field) bool { return f.name == name })
}

// follow resolves an alias and counts what is read.
func (p *parser) follow(n *yaml.Node) (*yaml.Node, error) {
	for range maxDepth {
		if n.Kind != yaml.AliasNode {
			if p.nodes++; p.nodes > maxNodes {
				return nil, p.errorf(n, "the file holds more than %d values", maxNodes)
			}
			return n, nil
		}
		n = n.Alias
	}
	return nil, p.errorf(n, "aliases are nested too deep")
}

func (p *parser) domain(doc *yaml.Node) (*Domain, error) {
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, nil // an empty document, for example only comments
	}
	d := &Domain{File: p.file, Line: doc.Content[0].Line, root: &node{}}
	var list *yaml.Node
	err := p.read(doc.Content[0], "the file",
		key{"domain", func(f field) (err error) {
			d.Line = f.key.Line
			d.Name, err = p.text(f)
			return err
		}},
		key{"descriptors", func(f field) error { list = f.value; return nil }},
	)
	if err != nil {
		return nil, err
	}
	if d.Name == "" {
		return nil, p.errorf(doc.Content[0], "domain is missing or empty")
	}
	if list == nil {
		return d, nil
	}
	return d, p.descriptors(d, d.root, list, d.Name, 0)
}

func (p *parser) descriptors(d *Domain, parent *node, list *yaml.Node, path string, depth int) error {
	if list.Tag == "!!null" {
		return nil
	}
	if list.Kind != yaml.SequenceNode {
		return p.errorf(list, "descriptors must be a list")
	}
	if depth > maxDepth {
		return p.errorf(list, "descriptors are nested deeper than %d", maxDepth)
	}
	if slices.Contains(p.open, list) {
		return p.errorf(list, "descriptors contain themselves")
	}
	p.open = append(p.open, list)
	defer func() { p.open = p.open[:len(p.open)-1] }()
	for _, item := range list.Content {
		if err := p.descriptor(d, parent, item, path, depth); err != nil {
			return err
		}
	}
	return nil
}

// descriptor is the file's shape of one descriptor.
type descriptor struct {
	key, value           string
	shadow, quota, share bool
	detailed, valued     bool
	metadata             *structpb.Struct
	rateLimit, children  *yaml.Node
}

func (p *parser) descriptor(d *Domain, parent *node, item *yaml.Node, path string, depth int) error {
	c, at, err := p.readDescriptor(item)
	if err != nil {
		return err
	}
	composite := c.key
	if c.value != "" {
		composite += "_" + c.value
	}
	if path += "." + composite; len(path) > maxPath {
		return p.errorf(at, "keys and values down to this descriptor have more than %d bytes", maxPath)
	}
	if parent.children == nil {
		parent.children = make(map[string]*node)
	}
	if parent.children[composite] != nil {
		return p.errorf(at, "descriptor %s is there twice", path)
	}
	n := &node{valued: parent.valued || c.valued}
	star := strings.Contains(composite, "*")
	if c.share {
		if !star {
			return p.errorf(at, "share_threshold needs a value with a *")
		}
		n.share = composite
	}
	if c.rateLimit != nil {
		if n.rule, err = p.rateLimit(c.rateLimit, path); err != nil {
			return err
		}
		n.rule.Shadow, n.rule.Quota, n.rule.Detailed, n.rule.Metadata = c.shadow, c.quota, c.detailed || n.valued, c.metadata
		d.rules = append(d.rules, n.rule)
	}
	parent.children[composite] = n
	if star {
		parent.wildcards = append(parent.wildcards, wildcard{strings.Split(composite, "*"), n})
	}
	if c.children == nil {
		return nil
	}
	return p.descriptors(d, n, c.children, path, depth+1)
}

// readDescriptor also says where the descriptor's key stands.
func (p *parser) readDescriptor(item *yaml.Node) (c descriptor, at *yaml.Node, err error) {
	at = item
	err = p.read(item, "a descriptor",
		key{"key", func(f field) (err error) {
			at = f.key
			c.key, err = p.text(f)
			return err
		}},
		key{"value", into(&c.value, p.text)},
		key{"rate_limit", func(f field) error {
			if f.value.Tag != "!!null" {
				c.rateLimit = f.value
			}
			return nil
		}},
		key{"descriptors", func(f field) error { c.children = f.value; return nil }},
		key{"shadow_mode", into(&c.shadow, p.boolean)},
		key{"quota_mode", into(&c.quota, p.boolean)},
		key{"detailed_metric", into(&c.detailed, p.boolean)},
		key{"value_to_metric", into(&c.valued, p.boolean)},
		key{"share_threshold", into(&c.share, p.boolean)},
		key{"metadata", into(&c.metadata, p.metadata)},
	)
	if err == nil && c.key == "" {
		err = p.errorf(at, "a descriptor has no key")
	}
	return c, at, err
}

func (p *parser) rateLimit(n *yaml.Node, path string) (*Rule, error) {
	r := &Rule{ID: path}
	var requests uint32
	var unit *yaml.Node
	err := p.read(n, "rate_limit",
		key{"unit", func(f field) (err error) {
			unit = f.key
			r.Unit, err = p.unit(f)
			return err
		}},
		key{"requests_per_unit", into(&requests, p.number)},
		key{"unlimited", into(&r.Unlimited, p.boolean)},
		key{"name", into(&r.Name, p.text)},
		key{"replaces", into(&r.Replaces, p.replaces)},
	)
	if err != nil {
		return nil, err
	}
	switch {
	case slices.Contains(r.Replaces, r.Name):
		return nil, p.errorf(n, "a rate_limit replaces itself: %q", r.Name)
	case r.Unlimited && unit != nil && r.Unit != rlsv3.RateLimitResponse_RateLimit_UNKNOWN:
		return nil, p.errorf(unit, "an unlimited rate_limit has no unit")
	case r.Unlimited:
		return r, nil
	}
	every, ok := window(r.Unit)
	if !ok {
		return nil, p.errorf(n, "rate_limit needs a unit: second, minute, hour, day, week, month or year")
	}
	if r.Limit, err = limit.New(limit.Fixed, requests, every); err != nil {
		return nil, p.errorf(n, "rate_limit: %v", err)
	}
	return r, nil
}

func (p *parser) unit(f field) (Unit, error) {
	name, err := p.text(f)
	if err != nil {
		return 0, err
	}
	u, ok := rlsv3.RateLimitResponse_RateLimit_Unit_value[strings.ToUpper(name)]
	if name == "" {
		return 0, nil
	}
	if !ok || u == 0 {
		return 0, p.errorf(f.value, "unit %q: want second, minute, hour, day, week, month or year", name)
	}
	return Unit(u), nil
}

func (p *parser) replaces(f field) ([]string, error) {
	if f.value.Tag == "!!null" {
		return nil, nil
	}
	if f.value.Kind != yaml.SequenceNode {
		return nil, p.errorf(f.value, "replaces must be a list of names")
	}
	var out []string
	for _, item := range f.value.Content {
		name := ""
		if err := p.read(item, "an entry of replaces", key{"name", into(&name, p.text)}); err != nil {
			return nil, err
		}
		if name == "" {
			return nil, p.errorf(item, "an entry of replaces has no name")
		}
		out = append(out, name)
	}
	return out, nil
}

// text reads any scalar as it is written, a number or a boolean too.
func (p *parser) text(f field) (string, error) {
	switch {
	case f.value.Kind != yaml.ScalarNode:
		return "", p.errorf(f.value, "%s must be text", f.name)
	case f.value.Tag == "!!null":
		return "", nil
	}
	return f.value.Value, nil
}

func (p *parser) boolean(f field) (b bool, err error) {
	if f.value.Tag == "!!null" {
		return false, nil
	}
	if err := f.value.Decode(&b); err != nil || f.value.Kind != yaml.ScalarNode {
		return false, p.errorf(f.value, "%s must be true or false", f.name)
	}
	return b, nil
}

func (p *parser) number(f field) (uint32, error) {
	if f.value.Kind == yaml.ScalarNode && f.value.Tag == "!!int" {
		if v, err := strconv.ParseUint(strings.ReplaceAll(f.value.Value, "_", ""), 0, 32); err == nil {
			return uint32(v), nil
		}
	}
	return 0, p.errorf(f.value, "%s must be a whole number from 0 to 4294967295, not %q", f.name, f.value.Value)
}

// metadata reads any mapping.
func (p *parser) metadata(f field) (*structpb.Struct, error) {
	if f.value.Tag == "!!null" {
		return nil, nil
	}
	if f.value.Kind != yaml.MappingNode {
		return nil, p.errorf(f.value, "metadata must be a mapping")
	}
	plain, err := p.plain(f.value, 0)
	if err != nil {
		return nil, err
	}
	fields, ok := plain.(map[string]any)
	if !ok || len(fields) == 0 {
		return nil, nil
	}
	out, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, p.errorf(f.value, "metadata: %v", err)
	}
	return out, nil
}

// plain gives a value as maps, lists and scalars.
func (p *parser) plain(n *yaml.Node, depth int) (any, error) {
	n, err := p.follow(n)
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, p.errorf(n, "metadata is nested deeper than %d", maxDepth)
	}
	switch n.Kind {
	case yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			if out[n.Content[i].Value], err = p.plain(n.Content[i+1], depth+1); err != nil {
				return nil, err
			}
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i, item := range n.Content {
			if out[i], err = p.plain(item, depth+1); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	var out any
	if err := n.Decode(&out); err != nil {
		return nil, p.errorf(n, "metadata: %v", err)
	}
	return out, nil
}
