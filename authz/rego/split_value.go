package rego

import (
	"net/netip"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-mesh/writ/internal/regoform"
)

// form is what a value of the input document is.
type form int

const (
	// formScalar is a string, or a string inside of a list that stands for any element.
	formScalar form = iota
	// formSegments is input.parsed_path, formSegment one element of it.
	formSegments
	formSegment
	// formParts is a string split by a separator, formPart one element of it.
	formParts
	formPart
	// formFlag is input.jwt.verified, which is there only where it is true.
	formFlag
	// formPort is a number.
	formPort
)

// value is something of the input document that an Envoy knows too.
type value struct {
	form form
	// atom has the subject of questions: kind, name, path.
	atom regoform.Atom
	// never empty: an empty one is left out of the document.
	nonempty bool
	// folded is in lower case.
	folded bool
	// element says that the value stands for some element of a list.
	element bool
	// index and separator are those of an element and of what was split.
	index     int
	separator string
}

// single says that there is at most one value, and that its absence is known.
func (v value) single() bool { return !v.element && v.atom.Kind != regoform.Claim }

// text says that the value is a string, a list of them or true: never false.
func (v value) text() bool { return v.atom.Kind != regoform.Claim }

// value finds what a term stands for.
func (s *scope) value(t *ast.Term) (value, bool) {
	switch x := t.Value.(type) {
	case ast.Var:
		v, ok := s.bound[x]
		return v, ok
	case ast.Call:
		if len(x) > 1 {
			return s.call(x[0].String(), x[1:])
		}
	case ast.Ref:
		if head, ok := x[0].Value.(ast.Var); ok && len(x) == 2 {
			if list, ok := s.bound[head]; ok {
				return list.at(x[1])
			}
		}
		return inputValue(x, s)
	}
	return value{}, false
}

// at is an element of a list, counted from 0.
func (v value) at(index *ast.Term) (value, bool) {
	n, ok := index.Value.(ast.Number)
	if !ok {
		return value{}, false
	}
	i, ok := n.Int()
	if !ok || i < 0 || i > 64 {
		return value{}, false
	}
	v.index = i
	switch v.form {
	case formSegments:
		v.form = formSegment
	case formParts:
		v.form = formPart
	default:
		return value{}, false
	}
	return v, true
}

// call is a function of a value that is a value again.
func (s *scope) call(name string, args []*ast.Term) (value, bool) {
	v, ok := s.value(args[0])
	if !ok || v.form != formScalar || v.element {
		return value{}, false
	}
	switch {
	case name == ast.Lower.Name && len(args) == 1 && (v.atom.Kind == regoform.Header || v.atom.Kind == regoform.SNI):
		v.folded = true
		return v, true
	case name == ast.Split.Name && len(args) == 2 && !v.folded && (v.atom.Kind == regoform.Header || v.atom.Kind == regoform.Principal):
		sep, ok := stringOf(args[1])
		if !ok || len(sep) != 1 || !plainText(sep) || v.atom.Kind == regoform.Principal && sep != "/" {
			return value{}, false
		}
		v.form, v.separator = formParts, sep
		return v, true
	}
	return value{}, false
}

// inputValue knows the part of the input document that an Envoy knows too. What
// is said of a value here is what NewInput and Envoy's ext_authz filter do.
func inputValue(ref ast.Ref, s *scope) (value, bool) {
	if !ref.HasPrefix(ast.InputRootRef) {
		return value{}, false
	}
	keys, last := stringKeys(ref[1:])
	header := func(name string) regoform.Atom { return regoform.Atom{Kind: regoform.Header, Name: name} }
	if len(last) == 0 {
		switch strings.Join(keys, ".") {
		case "attributes.request.http.method":
			return value{atom: header(":method"), nonempty: true}, true
		case "attributes.request.http.path":
			return value{atom: header(":path"), nonempty: true}, true
		case "attributes.request.http.host":
			return value{atom: header(":authority"), nonempty: true}, true
		case "attributes.request.http.scheme":
			return value{atom: header(":scheme"), nonempty: true}, true
		case "source_principal", "attributes.source.principal":
			return value{atom: regoform.Atom{Kind: regoform.Principal}, nonempty: true}, true
		case "attributes.destination.principal":
			return value{atom: regoform.Atom{Kind: regoform.DestinationPrincipal}, nonempty: true}, true
		case "attributes.source.address.socketAddress.address":
			return value{atom: regoform.Atom{Kind: regoform.SourceIP}, nonempty: true}, true
		case "attributes.destination.address.socketAddress.address":
			return value{atom: regoform.Atom{Kind: regoform.DestinationIP}, nonempty: true}, true
		case "attributes.destination.address.socketAddress.portValue":
			return value{form: formPort, atom: regoform.Atom{Kind: regoform.DestinationPort}}, true
		case "attributes.tlsSession.sni":
			return value{atom: regoform.Atom{Kind: regoform.SNI}, nonempty: true}, true
		case "jwt.verified":
			return value{form: formFlag, atom: regoform.Atom{Kind: regoform.Token}}, true
		case "jwt.issuer":
			return value{atom: regoform.Atom{Kind: regoform.Claim, Path: "iss"}}, true
		case "parsed_path":
			return value{form: formSegments, atom: header(":path")}, true
		}
	}
	switch {
	case len(keys) == 5 && len(last) == 0 && strings.Join(keys[:4], ".") == "attributes.request.http.headers" && headerName(keys[4]):
		return value{atom: header(keys[4])}, true
	case len(keys) == 1 && keys[0] == "parsed_path" && len(last) == 1:
		return value{form: formSegments, atom: header(":path")}.at(last[0])
	case len(keys) > 2 && keys[0] == "jwt" && keys[1] == "claims" && claimPath(keys[2:]):
		v := value{atom: regoform.Atom{Kind: regoform.Claim, Path: strings.Join(keys[2:], "\x00")}}
		if len(last) == 0 {
			return v, true
		}
		if name, ok := last[0].Value.(ast.Var); ok && len(last) == 1 && s.once(name) {
			v.element = true
			return v, true
		}
	}
	return value{}, false
}

// stringKeys gives the constant strings that a reference begins with, and the rest.
func stringKeys(ref ast.Ref) (keys []string, rest ast.Ref) {
	for i, t := range ref {
		s, ok := stringOf(t)
		if !ok {
			return keys, ref[i:]
		}
		keys = append(keys, s)
	}
	return keys, nil
}

// headerName says that an Envoy finds under the name what the input document has
// under it: names are in lower case there, "host" is another name of :authority
// in Envoy, and what tells of a cut body is not the client's.
func headerName(s string) bool {
	switch s {
	case ":method", ":path", ":authority", ":scheme":
		return true
	case "host", partialBody, "":
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.", rune(c)) {
			return false
		}
	}
	return len(s) <= 128
}

func claimPath(keys []string) bool {
	for _, k := range keys {
		if k == "" || strings.Contains(k, "\x00") || len(k) > 256 {
			return false
		}
	}
	return len(keys) <= 8
}

// plainText says that a constant has only characters which a header has in the input
// document exactly if the request has them: Envoy puts "!" in the place of every
// byte that is not UTF-8.
func plainText(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '!' {
			return false
		}
	}
	return len(s) <= 1024
}

// ask is a question about the value itself.
func (v value) ask(t regoform.Test, with string) *regoform.Formula {
	a := v.atom
	a.Test, a.Value = t, with
	return regoform.Of(a)
}

// odd are values that the document has in another form than the request.
func (v value) odd() *regoform.Formula {
	switch v.atom.Kind {
	case regoform.Header:
		return regoform.And(v.ask(regoform.Present, ""), regoform.Not(v.ask(regoform.Regex, `[\x00-\x7f]*`)))
	case regoform.SNI:
		return regoform.And(v.ask(regoform.Present, ""), regoform.Not(v.ask(regoform.Regex, `[\x00-\x7f]*`)))
	case regoform.Claim:
		// A token that this Envoy did not look at may be verified here.
		token := regoform.Of(regoform.Atom{Kind: regoform.Token})
		return regoform.And(regoform.Not(token), regoform.Not(regoform.Of(regoform.Atom{Kind: regoform.NoToken})))
	}
	return regoform.False()
}

// there says when the value is defined.
func (v value) there() bounds {
	switch v.form {
	case formSegment:
		if v.index == 0 {
			return exactly(regoform.Always())
		}
		return unless(oddPath(), v.ask(regoform.Regex, pathRegex(v.index, "", true)))
	case formSegments:
		return exactly(regoform.Always())
	case formPart:
		return v.partThere()
	case formFlag:
		f := v.ask(regoform.Present, "")
		return bounds{f, regoform.Or(f, value{atom: regoform.Atom{Kind: regoform.Claim}}.odd())}
	case formPort:
		return exactly(regoform.Always())
	}
	switch v.atom.Kind {
	case regoform.Header:
		return exactly(v.headerThere())
	case regoform.Principal, regoform.DestinationPrincipal:
		return exactly(v.ask(regoform.Prefix, spiffeScheme))
	case regoform.SourceIP, regoform.DestinationIP:
		return exactly(regoform.Always())
	case regoform.SNI:
		return exactly(v.ask(regoform.Regex, `\C+`))
	case regoform.Claim:
		// null is there, and Envoy does not tell it from nothing.
		return bounds{v.ask(regoform.Present, ""), regoform.Or(regoform.Of(regoform.Atom{Kind: regoform.Token}), v.odd())}
	}
	return anything()
}

func (v value) headerThere() *regoform.Formula {
	if v.nonempty {
		return v.ask(regoform.Regex, `\C+`)
	}
	return v.ask(regoform.Present, "")
}

// equals compares with a constant, or with a list that has wildcards.
func (v value) equals(t *ast.Term, s *scope) (bounds, bool) {
	switch v.form {
	case formFlag:
		if t.Equal(ast.BooleanTerm(true)) {
			return v.there(), true
		}
		return bounds{}, false
	case formPort:
		n, ok := wholeOf(t)
		if !ok || len(n) > 5 || strings.HasPrefix(n, "-") {
			return bounds{}, false
		}
		return exactly(v.ask(regoform.Equal, n)), true
	case formSegments, formParts:
		return v.pattern(t, s)
	}
	if b, ok := t.Value.(ast.Boolean); ok && v.atom.Kind == regoform.Claim && !v.element {
		test := regoform.Untrue
		if b {
			test = regoform.True
		}
		f := v.ask(test, "")
		return bounds{f, regoform.Or(f, v.odd())}, true
	}
	if c, ok := stringOf(t); ok {
		return v.compare(regoform.Equal, c)
	}
	return bounds{}, false
}

// compare asks whether the value is, begins with, ends with or contains a constant.
func (v value) compare(t regoform.Test, c string) (bounds, bool) {
	switch {
	case v.form == formSegment:
		return v.compareSegment(t, c)
	case v.form == formPart:
		return v.comparePart(t, c)
	case v.form != formScalar:
		return bounds{}, false
	}
	switch v.atom.Kind {
	case regoform.Header:
		return v.compareHeader(t, c)
	case regoform.Principal, regoform.DestinationPrincipal:
		return v.comparePrincipal(t, c)
	case regoform.SourceIP, regoform.DestinationIP:
		return v.compareAddress(t, c)
	case regoform.SNI:
		// Envoy has it in lower case only.
		if t != regoform.Equal || !v.folded || c == "" || !plainText(c) {
			return bounds{}, false
		}
		if c != strings.ToLower(c) {
			return exactly(regoform.False()), true
		}
		return unless(v.odd(), v.ask(t, c)), true
	case regoform.Claim:
		return v.compareClaim(t, c)
	}
	return bounds{}, false
}

func (v value) compareHeader(t regoform.Test, c string) (bounds, bool) {
	if !plainText(c) {
		return bounds{}, false
	}
	if c == "" {
		switch {
		case t != regoform.Equal:
			return v.there(), true
		case v.nonempty:
			return exactly(regoform.False()), true
		}
		return exactly(v.ask(t, c)), true
	}
	if !v.folded {
		return exactly(v.ask(t, c)), true
	}
	if c != strings.ToLower(c) {
		return exactly(regoform.False()), true
	}
	folded := v
	folded.atom.Fold = true
	return unless(v.odd(), folded.ask(t, c)), true
}

func (v value) compareAddress(t regoform.Test, c string) (bounds, bool) {
	addr, err := netip.ParseAddr(c)
	if t != regoform.Equal || err != nil || addr.String() != c || addr.Zone() != "" || addr.Is4In6() {
		return bounds{}, false
	}
	return exactly(v.ask(regoform.Within, netip.PrefixFrom(addr, addr.BitLen()).String())), true
}

func (v value) compareClaim(t regoform.Test, c string) (bounds, bool) {
	if len(c) > 1024 {
		return bounds{}, false
	}
	if !v.element {
		if c == "" && t != regoform.Equal {
			t = regoform.Text
		}
		f := v.ask(t, c)
		return bounds{f, regoform.Or(f, v.odd())}, true
	}
	if t != regoform.Equal {
		return bounds{}, false
	}
	return v.has(c), true
}

// has asks for an element of a list. An object has elements too, and Envoy cannot
// look for them; nor does it tell an object from a number or an empty list.
func (v value) has(c string) bounds {
	f := v.ask(regoform.Has, c)
	shape := regoform.And(v.ask(regoform.Present, ""), regoform.Not(v.ask(regoform.List, "")), regoform.Not(v.ask(regoform.Text, "")),
		regoform.Not(v.ask(regoform.True, "")), regoform.Not(v.ask(regoform.Untrue, "")))
	return bounds{f, regoform.Or(f, shape, v.odd())}
}

// test is a built-in function that answers yes or no.
func (s *scope) test(name string, args []*ast.Term) (bounds, bool) {
	switch name {
	case ast.Member.Name:
		return s.member(args)
	case ast.NetCIDRContains.Name:
		return s.within(args)
	case ast.RegexMatch.Name:
		return s.regexMatch(args)
	case ast.GlobMatch.Name:
		return s.globMatch(args)
	case ast.Sprintf.Name:
		return s.sprintf(args)
	}
	var t regoform.Test
	switch name {
	case ast.StartsWith.Name:
		t = regoform.Prefix
	case ast.EndsWith.Name:
		t = regoform.Suffix
	case ast.Contains.Name:
		t = regoform.Contains
	default:
		return bounds{}, false
	}
	if len(args) != 2 {
		return bounds{}, false
	}
	v, ok := s.value(args[0])
	c, isText := stringOf(args[1])
	if !ok || !isText || v.element {
		return bounds{}, false
	}
	return v.compare(t, c)
}

// member is "x in y".
func (s *scope) member(args []*ast.Term) (bounds, bool) {
	if len(args) != 2 {
		return bounds{}, false
	}
	if c, ok := stringOf(args[0]); ok {
		v, ok := s.value(args[1])
		if !ok || v.form != formScalar || v.atom.Kind != regoform.Claim || v.element || len(c) > 1024 {
			return bounds{}, false
		}
		return v.has(c), true
	}
	v, ok := s.value(args[0])
	if !ok || v.element || !isConstant(args[1]) {
		return bounds{}, false
	}
	var elements []*ast.Term
	switch list := args[1].Value.(type) {
	case *ast.Array:
		list.Foreach(func(t *ast.Term) { elements = append(elements, t) })
	case ast.Set:
		list.Foreach(func(t *ast.Term) { elements = append(elements, t) })
	default:
		return bounds{}, false
	}
	var all []bounds
	for _, e := range elements {
		b, ok := v.equals(e, s)
		if !ok {
			return bounds{}, false
		}
		all = append(all, b)
	}
	return anyOf(all...), true
}

func (s *scope) within(args []*ast.Term) (bounds, bool) {
	if len(args) != 2 {
		return bounds{}, false
	}
	c, ok := stringOf(args[0])
	v, known := s.value(args[1])
	block, err := netip.ParsePrefix(c)
	if !ok || !known || err != nil || block.Addr().Is4In6() || v.atom.Kind != regoform.SourceIP && v.atom.Kind != regoform.DestinationIP {
		return bounds{}, false
	}
	return exactly(v.ask(regoform.Within, block.Masked().String())), true
}

// sprintf always answers where its arguments are there, and the answer is used for
// messages only: its variable stands nowhere else.
func (s *scope) sprintf(args []*ast.Term) (bounds, bool) {
	if len(args) != 3 {
		return bounds{}, false
	}
	_, isText := stringOf(args[0])
	list, isList := args[1].Value.(*ast.Array)
	out, isVar := args[2].Value.(ast.Var)
	if !isText || !isList || !isVar || !s.once(out) {
		return bounds{}, false
	}
	all := []bounds{exactly(regoform.Always())}
	for i := range list.Len() {
		t := list.Elem(i)
		if isConstant(t) {
			continue
		}
		v, ok := s.value(t)
		if !ok {
			return bounds{}, false
		}
		all = append(all, v.there())
	}
	return allOf(all...), true
}
