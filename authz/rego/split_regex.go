package rego

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-mesh/writ/internal/regoform"
)

const spiffeScheme = "spiffe://"

// maxRegex bounds a program of RE2, in instructions.
const maxRegex = 1000

// What stands in a path: a slash, and any character that is none, each also as
// percent-encoding; and what may follow a segment.
const (
	slash    = `(?:/|%2[fF])`
	noSlash  = `(?:[^/%?]|%(?:[013-9a-fA-F][0-9a-fA-F]|2[0-9a-eA-E]))`
	pathRest = `(?:` + slash + `\C*|\?\C*)?`
	query    = `(?:\?\C*)?`
)

func pathValue() value {
	return value{atom: regoform.Atom{Kind: regoform.Header, Name: ":path"}, nonempty: true}
}

// malformedTarget are requests whose path or query NewInput cannot take apart. A
// target that is not UTF-8 counts as one.
func malformedTarget() *regoform.Formula {
	const pair = `%[0-9a-fA-F]{2}`
	return regoform.And(pathValue().ask(regoform.Present, ""), regoform.Not(pathValue().ask(regoform.Regex, `(?:[^%?]|`+pair+`)*(?:\?(?:[^%;]|`+pair+`)*)?`)))
}

// oddPath are paths, without their query, that are not ASCII.
func oddPath() *regoform.Formula {
	return regoform.And(pathValue().ask(regoform.Present, ""), regoform.Not(pathValue().ask(regoform.Regex, `[\x00-\x3e\x40-\x7f]*`+query)))
}

// percentForms matches a text, each of its characters also as percent-encoding.
func percentForms(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		hex := ""
		for _, d := range fmt.Sprintf("%02x", c) {
			if d >= 'a' {
				hex += fmt.Sprintf("[%c%c]", d, d-'a'+'A')
			} else {
				hex += string(d)
			}
		}
		if c == '%' || c == '?' {
			fmt.Fprintf(&b, "%%%s", hex)
			continue
		}
		fmt.Fprintf(&b, "(?:%s|%%%s)", regexp.QuoteMeta(string(rune(c))), hex)
	}
	return b.String()
}

// pathRegex matches a path whose segment of that index matches inner, or begins
// with it. Slashes in front of the first segment do not count.
func pathRegex(index int, inner string, begins bool) string {
	if begins {
		inner += noSlash + "*"
	}
	before := slash + "*"
	if index > 0 {
		before += noSlash + "+"
		if index > 1 {
			before += fmt.Sprintf("(?:%s%s*){%d}", slash, noSlash, index-1)
		}
		before += slash
	}
	return before + inner + pathRest
}

func (v value) compareSegment(t regoform.Test, c string) (bounds, bool) {
	if !plainText(c) || len(c) > 100 || t != regoform.Equal && t != regoform.Prefix {
		return bounds{}, false
	}
	if strings.Contains(c, "/") {
		return exactly(regoform.False()), true
	}
	if c == "" {
		if t == regoform.Prefix {
			return v.there(), true
		}
		if v.index == 0 {
			absent := regoform.Not(v.ask(regoform.Present, ""))
			return exactly(regoform.Or(absent, v.ask(regoform.Regex, slash+"*"+query))), true
		}
	}
	f := v.ask(regoform.Regex, pathRegex(v.index, percentForms(c), t == regoform.Prefix))
	if v.index == 0 && t == regoform.Equal {
		return exactly(f), true
	}
	return unless(oddPath(), f), true
}

// pattern compares a list with a list of constants and wildcards.
func (v value) pattern(t *ast.Term, s *scope) (bounds, bool) {
	list, ok := t.Value.(*ast.Array)
	if !ok || list.Len() == 0 || list.Len() > 32 || v.atom.Kind != regoform.Header {
		return bounds{}, false
	}
	elements := make([]*string, list.Len())
	for i := range elements {
		e := list.Elem(i)
		if name, ok := e.Value.(ast.Var); ok && s.once(name) {
			continue
		}
		c, ok := stringOf(e)
		if !ok || !plainText(c) || len(c) > 100 {
			return bounds{}, false
		}
		elements[i] = &c
	}
	if v.form == formSegments {
		return v.segmentPattern(elements)
	}
	return v.partPattern(elements)
}

func (v value) segmentPattern(elements []*string) (bounds, bool) {
	var b strings.Builder
	b.WriteString(slash + "*")
	for i, e := range elements {
		if i > 0 {
			b.WriteString(slash)
		}
		switch {
		case e == nil && i == 0 && len(elements) > 1:
			b.WriteString(noSlash + "+")
		case e == nil:
			b.WriteString(noSlash + "*")
		case strings.Contains(*e, "/") || *e == "" && i == 0 && len(elements) > 1:
			return exactly(regoform.False()), true
		default:
			b.WriteString(percentForms(*e))
		}
	}
	f := v.ask(regoform.Regex, b.String()+query)
	if len(elements) == 1 && (elements[0] == nil || *elements[0] == "") {
		f = regoform.Or(f, regoform.Not(v.ask(regoform.Present, "")))
	}
	return unless(oddPath(), f), true
}

func (v value) partPattern(elements []*string) (bounds, bool) {
	sep := regexp.QuoteMeta(v.separator)
	other := "[^" + sep + "]*"
	var b strings.Builder
	for i, e := range elements {
		if i > 0 {
			b.WriteString(sep)
		}
		switch {
		case e == nil:
			b.WriteString(other)
		case strings.Contains(*e, v.separator):
			return exactly(regoform.False()), true
		default:
			b.WriteString(regexp.QuoteMeta(*e))
		}
	}
	return v.partAsk(b.String()), true
}

// partAsk asks about a string that was split. What is left out of the document
// when it is empty has no parts either.
func (v value) partAsk(expression string) bounds {
	f := v.ask(regoform.Regex, expression)
	if v.nonempty {
		f = regoform.And(f, v.headerThere())
	}
	return unless(v.odd(), f)
}

func (v value) before() string {
	if v.index == 0 {
		return ""
	}
	sep := regexp.QuoteMeta(v.separator)
	return fmt.Sprintf("(?:[^%s]*%s){%d}", sep, sep, v.index)
}

func (v value) partThere() bounds {
	if v.atom.Kind != regoform.Header {
		b, _ := v.principalPart("", true)
		return b
	}
	if v.index == 0 {
		return exactly(v.headerThere())
	}
	return v.partAsk(v.before() + `\C*`)
}

func (v value) comparePart(t regoform.Test, c string) (bounds, bool) {
	if !plainText(c) || len(c) > 200 || t != regoform.Equal && t != regoform.Prefix {
		return bounds{}, false
	}
	if strings.Contains(c, v.separator) {
		return exactly(regoform.False()), true
	}
	if v.atom.Kind != regoform.Header {
		return v.principalPart(c, t == regoform.Prefix)
	}
	rest := `(?:` + regexp.QuoteMeta(v.separator) + `\C*)?`
	if t == regoform.Prefix {
		rest = `\C*`
	}
	return v.partAsk(v.before() + regexp.QuoteMeta(c) + rest), true
}

// principalPart is an element of a SPIFFE ID that was split at its slashes. Only
// such IDs get through a sidecar, and each expression begins with the scheme, so
// that nothing else of a certificate can be meant.
func (v value) principalPart(c string, begins bool) (bounds, bool) {
	is := func(want string) (bounds, bool) {
		if want == c || begins && strings.HasPrefix(want, c) {
			return exactly(v.ask(regoform.Prefix, spiffeScheme)), true
		}
		return exactly(regoform.False()), true
	}
	switch v.index {
	case 0:
		return is("spiffe:")
	case 1:
		return is("")
	}
	expression := spiffeScheme
	if v.index > 2 {
		expression += fmt.Sprintf("(?:[^/]*/){%d}", v.index-2)
	}
	expression += regexp.QuoteMeta(c)
	if begins {
		expression += `\C*`
	} else {
		expression += `(?:/\C*)?`
	}
	return exactly(v.ask(regoform.Regex, expression)), true
}

// comparePrincipal never looks at anything but a SPIFFE ID, see principalPart.
func (v value) comparePrincipal(t regoform.Test, c string) (bounds, bool) {
	if !plainText(c) {
		return bounds{}, false
	}
	there := v.ask(regoform.Prefix, spiffeScheme)
	switch t {
	case regoform.Equal, regoform.Prefix:
		switch {
		case strings.HasPrefix(c, spiffeScheme) && len(c) > len(spiffeScheme):
			return exactly(v.ask(t, c)), true
		case t == regoform.Prefix && strings.HasPrefix(spiffeScheme, c):
			return exactly(there), true
		}
		return exactly(regoform.False()), true
	case regoform.Suffix, regoform.Contains:
		if t == regoform.Contains && strings.Contains(spiffeScheme, c) || c == "" {
			return exactly(there), true
		}
		end := ""
		if t == regoform.Contains {
			end = `\C*`
		}
		alternatives := []string{spiffeScheme + `\C*` + regexp.QuoteMeta(c) + end}
		for k := 1; k <= min(len(c), len(spiffeScheme)); k++ {
			if strings.HasSuffix(spiffeScheme, c[:k]) {
				alternatives = append(alternatives, spiffeScheme+regexp.QuoteMeta(c[k:])+end)
			}
		}
		if t == regoform.Contains && strings.Contains(c, spiffeScheme) || t == regoform.Suffix && strings.HasPrefix(c, spiffeScheme) {
			alternatives = append(alternatives, regexp.QuoteMeta(c)+end)
		}
		if i := strings.Index(c, spiffeScheme); i > 0 {
			return exactly(regoform.False()), true
		}
		return exactly(v.ask(regoform.Regex, strings.Join(alternatives, "|"))), true
	}
	return bounds{}, false
}

// regexMatch is an expression that matches somewhere in a value. Go's and Envoy's
// dialects are one but for bytes that are not UTF-8 and characters beyond ASCII.
func (s *scope) regexMatch(args []*ast.Term) (bounds, bool) {
	if len(args) != 2 {
		return bounds{}, false
	}
	c, ok := stringOf(args[0])
	v, known := s.value(args[1])
	if !ok || !known || v.form != formScalar || v.element || v.folded {
		return bounds{}, false
	}
	expression, exact, anchor, ok := translateRegex(c)
	if !ok {
		return bounds{}, false
	}
	whole := `\C*(?:` + expression + `)\C*`
	switch v.atom.Kind {
	case regoform.Header:
		f := v.ask(regoform.Regex, whole)
		if v.nonempty {
			f = regoform.And(f, v.headerThere())
		}
		if exact {
			return exactly(f), true
		}
		return unless(v.odd(), f), true
	case regoform.Principal, regoform.DestinationPrincipal:
		if !strings.HasPrefix(anchor, spiffeScheme) {
			return bounds{}, false
		}
		return exactly(v.ask(regoform.Regex, whole)), true
	}
	return bounds{}, false
}

// translateRegex gives an expression without groups that are remembered. exact
// says that it means the same for bytes that are not ASCII; anchor is the text
// that every match begins with, at the beginning of the value.
func translateRegex(c string) (expression string, exact bool, anchor string, ok bool) {
	if len(c) > 500 {
		return "", false, "", false
	}
	tree, err := syntax.Parse(c, syntax.Perl)
	if err != nil {
		return "", false, "", false
	}
	program, err := syntax.Compile(tree.Simplify())
	if err != nil || len(program.Inst) > maxRegex {
		return "", false, "", false
	}
	if tree, err = syntax.Parse(c, syntax.Perl); err != nil {
		return "", false, "", false
	}
	anchor = anchored(tree)
	exact = true
	text := writeRegex(tree, &exact)
	return text, exact, anchor, true
}

// anchored gives the literal text that follows ^ at the start of an expression.
func anchored(re *syntax.Regexp) string {
	if re.Op != syntax.OpConcat || len(re.Sub) < 2 || re.Sub[0].Op != syntax.OpBeginText {
		return ""
	}
	if lit := re.Sub[1]; lit.Op == syntax.OpLiteral && lit.Flags&syntax.FoldCase == 0 {
		return string(lit.Rune)
	}
	return ""
}

// writeRegex writes a tree without its groups, with \C where any run of
// characters is meant, and clears exact if that is not enough to make it mean
// the same for every byte.
func writeRegex(re *syntax.Regexp, exact *bool) string {
	group := func(sub *syntax.Regexp) string { return "(?:" + writeRegex(sub, exact) + ")" }
	switch re.Op {
	case syntax.OpCapture:
		return group(re.Sub[0])
	case syntax.OpConcat:
		var b strings.Builder
		for _, sub := range re.Sub {
			b.WriteString(group(sub))
		}
		return b.String()
	case syntax.OpAlternate:
		texts := make([]string, len(re.Sub))
		for i, sub := range re.Sub {
			texts[i] = group(sub)
		}
		return strings.Join(texts, "|")
	case syntax.OpStar, syntax.OpPlus:
		repeat := map[syntax.Op]string{syntax.OpStar: "*", syntax.OpPlus: "+"}[re.Op]
		if sub := re.Sub[0].Op; sub == syntax.OpAnyChar || sub == syntax.OpAnyCharNotNL {
			// No value has a line's end.
			return `\C` + repeat
		}
		return group(re.Sub[0]) + repeat
	case syntax.OpQuest:
		return group(re.Sub[0]) + "?"
	case syntax.OpRepeat:
		if re.Max < 0 {
			return fmt.Sprintf("%s{%d,}", group(re.Sub[0]), re.Min)
		}
		return fmt.Sprintf("%s{%d,%d}", group(re.Sub[0]), re.Min, re.Max)
	case syntax.OpLiteral, syntax.OpCharClass:
		for _, r := range re.Rune {
			*exact = *exact && r < 0x80 && r != '!'
		}
		if re.Op == syntax.OpCharClass {
			for i := 0; i+1 < len(re.Rune); i += 2 {
				*exact = *exact && (re.Rune[i] > '!' || re.Rune[i+1] < '!')
			}
		}
		if re.Flags&syntax.FoldCase != 0 {
			*exact = *exact && !strings.ContainsAny(string(re.Rune), "kKsS")
		}
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		*exact = false
	}
	return re.String()
}

// globMatch knows patterns of literal characters, * and **.
func (s *scope) globMatch(args []*ast.Term) (bounds, bool) {
	if len(args) != 3 {
		return bounds{}, false
	}
	c, ok := stringOf(args[0])
	v, known := s.value(args[2])
	if !ok || !known || v.form != formScalar || v.element || v.folded || v.atom.Kind != regoform.Header || !plainText(c) || len(c) > 200 {
		return bounds{}, false
	}
	delimiters, ok := delimitersOf(args[1])
	if !ok || strings.ContainsAny(c, `?[]{}\`) || strings.Contains(c, "***") {
		return bounds{}, false
	}
	exact := true
	var b strings.Builder
	for rest := c; rest != ""; {
		switch {
		case strings.HasPrefix(rest, "**"):
			b.WriteString(`\C*`)
			rest = rest[2:]
		case rest[0] == '*' && delimiters == "":
			b.WriteString(`\C*`)
			rest = rest[1:]
		case rest[0] == '*':
			b.WriteString("[^" + regexp.QuoteMeta(delimiters) + "]*")
			exact, rest = false, rest[1:]
		default:
			b.WriteString(regexp.QuoteMeta(rest[:1]))
			rest = rest[1:]
		}
	}
	f := v.ask(regoform.Regex, b.String())
	if v.nonempty {
		f = regoform.And(f, v.headerThere())
	}
	if exact {
		return exactly(f), true
	}
	return unless(v.odd(), f), true
}

// delimitersOf: null is none, and an empty list is the dot.
func delimitersOf(t *ast.Term) (string, bool) {
	if _, null := t.Value.(ast.Null); null {
		return "", true
	}
	list, ok := t.Value.(*ast.Array)
	if !ok {
		return "", false
	}
	if list.Len() == 0 {
		return ".", true
	}
	out := ""
	for i := range list.Len() {
		d, ok := stringOf(list.Elem(i))
		if !ok || len(d) != 1 || !plainText(d) || strings.ContainsAny(d, `-^]\`) {
			return "", false
		}
		out += d
	}
	return out, true
}
