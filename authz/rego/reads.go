package rego

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// reads is the part of the input document that a policy looks at: a tree of
// the keys of objects. What is not an object is read whole or not at all. The nil
// reads is nothing.
type reads struct {
	// all: the value and everything below it.
	all  bool
	keys []key
}

type key struct {
	name  string
	below *reads
}

// everything is the whole input document.
var everything = &reads{all: true}

// at is what is read below a key. A list is searched, not a map: most have less
// than five keys, and it is asked many times for each request.
func (r *reads) at(name string) *reads {
	if r == nil || r.all {
		return r
	}
	for i := range r.keys {
		if r.keys[i].name == name {
			return r.keys[i].below
		}
	}
	return nil
}

// add adds a path: the value at its end, whatever that is.
func (r *reads) add(path []string) {
	switch {
	case r.all:
	case len(path) == 0:
		r.all, r.keys = true, nil
	default:
		below := r.at(path[0])
		if below == nil {
			below = new(reads)
			r.keys = append(r.keys, key{path[0], below})
		}
		below.add(path[1:])
	}
}

// equal says that the same is read. Both are sorted.
func (r *reads) equal(other *reads) bool {
	return r.all == other.all && slices.EqualFunc(r.keys, other.keys, func(a, b key) bool { return a.name == b.name && a.below.equal(b.below) })
}

// narrow says that neither a body nor headers or claims as a whole are read.
func (r *reads) narrow() bool {
	http := r.at("attributes").at("request").at("http")
	for _, whole := range []*reads{r, r.at("attributes"), r.at("attributes").at("request"), http, http.at("headers"), r.at("jwt"), r.at("jwt").at("claims")} {
		if whole != nil && whole.all {
			return false
		}
	}
	return r.at("parsed_body") == nil && http.at("body") == nil && http.at("rawBody") == nil && http.at("headerMap") == nil
}

// names are the keys that are read below a path, none if it is read whole.
func (r *reads) names(path ...string) []string {
	for _, name := range path {
		r = r.at(name)
	}
	if r == nil || r.all {
		return nil
	}
	out := make([]string, 0, len(r.keys))
	for _, k := range r.keys {
		out = append(out, k.name)
	}
	return out
}

// paths are what is read, as references of Rego, sorted.
func (r *reads) paths(prefix string) []string {
	if r.all {
		return []string{prefix}
	}
	var out []string
	for _, k := range r.keys {
		name := ast.String(k.name)
		step := "[" + name.String() + "]"
		if ast.IsVarCompatibleString(k.name) {
			step = "." + k.name
		}
		out = append(out, k.below.paths(prefix+step)...)
	}
	slices.Sort(out)
	return out
}

// sort brings keys into an order that depends on nothing else.
func (r *reads) sort() {
	slices.SortFunc(r.keys, func(a, b key) int { return strings.Compare(a.name, b.name) })
	for _, k := range r.keys {
		k.below.sort()
	}
}

// analysis finds what a query can read of the input and whether its result
// depends on anything else. It is sound rather than exact: what it cannot tell
// counts as read, or as impure.
type analysis struct {
	compiler *ast.Compiler
	reads    *reads
	// impure names the built-in function because of which the same input may give
	// another result; empty if there is none.
	impure string
	// grows is the first rule that puts too large a value together.
	grows error
	// data are the parts of the data, rules included, that it can look at.
	data needed
	// whole are parts of the data that evaluations may need as a whole.
	whole []storage.Path

	seen map[*ast.Rule]bool
	todo []*ast.Rule
}

// analyze looks at a query and at all rules that it can reach. They are compiled:
// imports are resolved, local variables have names of their own.
func analyze(c *ast.Compiler, query ast.Body) *analysis {
	a := &analysis{compiler: c, reads: new(reads), seen: make(map[*ast.Rule]bool)}
	if c == nil {
		a.reads.add(nil)
		a.data.add(nil)
		a.impure = "unknown"
		return a
	}
	a.walk(query)
	a.grows = checkGrowth(query)
	for len(a.todo) > 0 {
		rule := a.todo[len(a.todo)-1]
		a.todo = a.todo[:len(a.todo)-1]
		a.rule(rule)
	}
	a.reads.sort()
	a.whole = wholeData(query, slices.Collect(maps.Keys(a.seen)))
	return a
}

// rule looks at a rule and its else branches. A visitor leaves out the reference
// in the head, which may have expressions in it too.
func (a *analysis) rule(r *ast.Rule) {
	for branch := r; branch != nil; branch = branch.Else {
		for _, part := range branch.Head.Reference {
			if _, local := part.Value.(ast.Var); !local {
				a.walk(part)
			}
		}
	}
	a.walk(r)
	if err := checkGrowth(r); err != nil && a.grows == nil {
		a.grows = fmt.Errorf("%s: rule %s: %w", r.Location, r.Ref(), err)
	}
}

func (a *analysis) walk(x any) { ast.NewGenericVisitor(a.visit).Walk(x) }

// visit implements the visitor; true leaves out what is below x.
func (a *analysis) visit(x any) bool {
	switch x := x.(type) {
	case ast.Var:
		// A root document as a whole, not as the head of a reference.
		switch {
		case x.Equal(ast.InputRootDocument.Value):
			a.reads.add(nil)
		case x.Equal(ast.DefaultRootDocument.Value):
			a.reach(ast.DefaultRootRef)
		}
	case ast.Ref:
		a.ref(x)
		return true
	case *ast.With:
		a.with(x)
		return true
	}
	return false
}

func (a *analysis) ref(r ast.Ref) {
	if len(r) == 0 {
		return
	}
	switch head := r[0]; {
	case head.Equal(ast.InputRootDocument):
		a.reads.add(constantPath(r[1:]))
	case head.Equal(ast.DefaultRootDocument):
		a.reach(r)
	default:
		if _, local := head.Value.(ast.Var); !local {
			a.walk(head)
		}
		if name := r.String(); a.impure == "" && ast.BuiltinMap[name] != nil && !pure[name] {
			a.impure = name
		}
	}
	for _, part := range r[1:] {
		a.walk(part)
	}
}

// reach adds the rules that a reference below data may mean.
func (a *analysis) reach(r ast.Ref) {
	a.data.add(constantPath(r[1:]))
	for _, rule := range a.compiler.GetRulesDynamicWithOpts(r, ast.RulesOptions{IncludeHiddenModules: true}) {
		if !a.seen[rule] {
			a.seen[rule] = true
			a.todo = append(a.todo, rule)
		}
	}
}

// with looks at what replaces a part of the input or the data: the result depends on
// whether there are objects on the way to it. An impure function counts even where another
// one replaces it.
func (a *analysis) with(w *ast.With) {
	switch r, ok := w.Target.Value.(ast.Ref); {
	case !ok:
	case r.HasPrefix(ast.InputRootRef) && len(r) > 2:
		a.reads.add(constantPath(r[1 : len(r)-1]))
	case r.HasPrefix(ast.DefaultRootRef):
		a.data.add(constantPath(r[1:max(1, len(r)-1)]))
	}
	a.walk(w.Value)
}

// constantPath is the path up to the first part that is not a constant string. A
// number is a place in a list, which is read whole.
func constantPath(parts []*ast.Term) []string {
	var path []string
	for _, p := range parts {
		s, ok := p.Value.(ast.String)
		if !ok {
			break
		}
		path = append(path, string(s))
	}
	return path
}

// pure are the built-in functions whose result depends on their arguments only and
// that do nothing else. What is not in the list is taken for impure, so that a
// function of a later OPA is until somebody has looked at it; OPA's own mark leaves
// out what looks at the clock (crypto.x509.parse_and_verify_certificates) and what
// may load from elsewhere.
var pure = func() map[string]bool {
	m := make(map[string]bool)
	for name := range strings.FieldsSeq(`
		eq assign internal.member_2 internal.member_3 gt gte lt lte neq equal
		plus minus mul div ceil floor round abs rem
		bits.or bits.and bits.negate bits.xor bits.lsh bits.rsh and or
		count sum product max min any all
		array.concat array.flatten array.slice array.reverse
		to_number cast_object cast_null cast_boolean cast_string cast_set cast_array set_diff
		regex.is_valid regex.match re_match regex.split regex.globs_match regex.template_match regex.find_n
		regex.find_all_string_submatch_n regex.replace
		intersection union
		strings.any_prefix_match strings.any_suffix_match concat format_int indexof indexof_n substring lower upper contains
		strings.count startswith endswith split strings.split_n replace strings.replace_n trim trim_left trim_prefix trim_right
		trim_suffix trim_space sprintf strings.reverse strings.render_template internal.template_string
		numbers.range numbers.range_step
		json.marshal json.marshal_with_options json.unmarshal json.is_valid base64.encode base64.decode base64.is_valid
		base64url.encode base64url.encode_no_pad base64url.decode urlquery.decode urlquery.encode urlquery.encode_object
		urlquery.decode_object uri.parse uri.is_valid yaml.marshal yaml.unmarshal yaml.is_valid hex.encode hex.decode
		object.union object.union_n object.remove object.filter object.get object.keys object.subset
		json.filter json.remove json.patch
		io.jwt.decode io.jwt.verify_rs256 io.jwt.verify_rs384 io.jwt.verify_rs512 io.jwt.verify_ps256 io.jwt.verify_ps384
		io.jwt.verify_ps512 io.jwt.verify_es256 io.jwt.verify_es384 io.jwt.verify_es512 io.jwt.verify_eddsa io.jwt.verify_hs256
		io.jwt.verify_hs384 io.jwt.verify_hs512
		time.parse_ns time.parse_rfc3339_ns time.parse_duration_ns time.format time.date time.clock time.weekday time.add_date time.diff
		crypto.x509.parse_certificates crypto.md5 crypto.sha1 crypto.sha256 crypto.x509.parse_certificate_request
		crypto.x509.parse_rsa_private_key crypto.x509.parse_keypair crypto.parse_private_keys crypto.hmac.md5 crypto.hmac.sha1
		crypto.hmac.sha256 crypto.hmac.sha512 crypto.hmac.equal
		walk graph.reachable graph.reachable_paths sort
		is_number is_string is_boolean is_array is_set is_object is_null type_name
		graphql.parse graphql.parse_and_verify graphql.parse_query graphql.parse_schema graphql.is_valid graphql.schema_is_valid
		rego.parse_module rego.metadata.chain rego.metadata.rule
		trace print internal.print
		net.cidr_overlap net.cidr_intersects net.cidr_contains net.cidr_contains_matches net.cidr_expand net.cidr_merge net.cidr_is_valid
		glob.match glob.quote_meta units.parse units.parse_bytes uuid.parse semver.is_valid semver.compare`) {
		m[name] = true
	}
	return m
}()
