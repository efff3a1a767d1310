// Package regoform is what can be said of a Rego policy without running it:
// formulas over what an Envoy knows of a request. authz/rego, the door to Open
// Policy Agent, makes them; pilot turns them into filters.
//
// A [Policy] is two bounds. Where they are one it needs nobody to evaluate it; what
// lies between them has to be asked for, and a [Reason] says which expression keeps
// it there.
//
// [And], [Or] and [Not] simplify as they build.
package regoform

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Policy is what is known of a policy: for which requests its rule surely allows,
// and for which it may. Neither leaves anything to be done to the request or to
// the answer.
type Policy struct {
	// Malformed are requests that are refused whatever the rule says.
	Malformed *Formula
	// Surely is no wider than Perhaps.
	Surely, Perhaps *Formula
	// Remote says why the two differ, as far as expressions are to blame.
	Remote []Reason
	// Plain says that the decision is a boolean: a refusal brings no status, header
	// or body of its own.
	Plain bool
	// Requests is what the rule reads that a connection without requests does not
	// have, as references of Rego; of such a connection the formulas say nothing then.
	Requests []string
	// Ports says that the rule may tell ports apart.
	Ports bool
}

// Unknown is a policy of which nothing is known but why.
func Unknown(why Reason) *Policy {
	return &Policy{Malformed: False(), Surely: False(), Perhaps: Always(), Remote: []Reason{why}}
}

// Allow holds for what is allowed for certain.
func (p *Policy) Allow() *Formula { return And(Not(p.Malformed), p.Surely) }

// Refuse holds for what is refused for certain.
func (p *Policy) Refuse() *Formula { return Or(p.Malformed, Not(p.Perhaps)) }

// Whole says that every request is decided.
func (p *Policy) Whole() bool { return p.Surely.String() == p.Perhaps.String() }

// Nothing says that no rule of the policy is decided for any request.
func (p *Policy) Nothing() bool { return p.Surely.op == OpFalse && p.Perhaps.op == OpTrue }

// Map puts another formula in the place of each atom.
func (p *Policy) Map(change func(Atom) *Formula) *Policy {
	out := *p
	out.Malformed, out.Surely, out.Perhaps = p.Malformed.Map(change), p.Surely.Map(change), p.Perhaps.Map(change)
	return &out
}

// Reads says whether an atom is about one of the kinds.
func (p *Policy) Reads(kinds ...Kind) bool {
	return p.Surely.Reads(kinds...) || p.Perhaps.Reads(kinds...)
}

// Reason is an expression that somebody else has to evaluate, and why.
type Reason struct {
	// Expression is the text, empty if the reason is about the whole policy.
	Expression string
	// Line is that of the module, from 1; 0 if there is none.
	Line int
	Why  string
}

// Op is what a Formula is.
type Op int

// The operations.
const (
	OpFalse Op = iota
	OpTrue
	OpAtom
	OpNot
	OpAnd
	OpOr
)

// Formula is a condition on a request. It is immutable.
type Formula struct {
	op    Op
	parts []*Formula
	atom  Atom
}

// Op says what the formula is.
func (f *Formula) Op() Op { return f.op }

// Parts are those of OpNot (one), OpAnd and OpOr (two or more).
func (f *Formula) Parts() []*Formula { return f.parts }

// Atom is that of OpAtom.
func (f *Formula) Atom() Atom { return f.atom }

// Kind is where a value comes from.
type Kind int

// The kinds of values.
const (
	// Header is a request header by its name in lower case, the pseudo headers
	// included; several of a name are one, joined by commas.
	Header Kind = iota
	// Principal is the caller's first URI SAN.
	Principal
	// DestinationPrincipal is the first URI SAN of the certificate that the caller
	// was shown.
	DestinationPrincipal
	// SourceIP and DestinationIP are the ends of the connection.
	SourceIP
	DestinationIP
	// DestinationPort is the port that the connection came to.
	DestinationPort
	// SNI is the server name of the TLS handshake in lower case.
	SNI
	// Claim is a claim of the token that Envoy has verified.
	Claim
	// Token is that token itself.
	Token
	// NoToken holds only if a request surely brings no token that anybody could
	// verify. What it means depends on the issuers, so it is the consumer's; false
	// is always right.
	NoToken
)

// Test is how a value is compared.
type Test int

// The tests.
const (
	// Present holds if the value is there. A header may be empty.
	Present Test = iota
	Equal
	Prefix
	Suffix
	Contains
	// Regex holds if all of the value matches an expression in the syntax of RE2,
	// \C (any byte) included.
	Regex
	// Within is for addresses: Value is in CIDR form.
	Within
	// Has holds for a list of which an element is the string Value.
	Has
	// True and Untrue hold for the booleans.
	True
	Untrue
	// Text holds for strings, List for lists with a string in them.
	Text
	List
)

// Atom is one question about a request. It is false where the value is absent.
type Atom struct {
	Kind Kind
	// Name is the header's.
	Name string
	// Path leads to a claim, its segments joined by the byte 0.
	Path string
	Test Test
	// Value is what is compared with; for DestinationPort a number.
	Value string
	// Fold ignores the case of ASCII letters, with Equal, Prefix, Suffix and Contains.
	Fold bool
}

// False never holds.
func False() *Formula { return &Formula{op: OpFalse} }

// Always holds for every request.
func Always() *Formula { return &Formula{op: OpTrue} }

// Of is a formula of one atom.
func Of(a Atom) *Formula { return &Formula{op: OpAtom, atom: a} }

// Not is the opposite of f.
func Not(f *Formula) *Formula {
	switch f.op {
	case OpFalse:
		return Always()
	case OpTrue:
		return False()
	case OpNot:
		return f.parts[0]
	}
	return &Formula{op: OpNot, parts: []*Formula{f}}
}

// And holds if all of fs do.
func And(fs ...*Formula) *Formula { return join(OpAnd, OpTrue, OpFalse, fs) }

// Or holds if one of fs does.
func Or(fs ...*Formula) *Formula { return join(OpOr, OpFalse, OpTrue, fs) }

func join(op, neutral, absorbing Op, fs []*Formula) *Formula {
	var parts []*Formula
	seen := map[string]bool{}
	add := func(f *Formula) {
		if text := f.String(); !seen[text] {
			seen[text] = true
			parts = append(parts, f)
		}
	}
	for _, f := range fs {
		switch f.op {
		case absorbing:
			return f
		case neutral:
		case op:
			for _, p := range f.parts {
				add(p)
			}
		default:
			add(f)
		}
	}
	switch len(parts) {
	case 0:
		return &Formula{op: neutral}
	case 1:
		return parts[0]
	}
	return &Formula{op: op, parts: parts}
}

// Map puts another formula in the place of each atom.
func (f *Formula) Map(change func(Atom) *Formula) *Formula {
	switch f.op {
	case OpAtom:
		return change(f.atom)
	case OpNot:
		return Not(f.parts[0].Map(change))
	case OpAnd, OpOr:
		parts := make([]*Formula, len(f.parts))
		for i, p := range f.parts {
			parts[i] = p.Map(change)
		}
		if f.op == OpAnd {
			return And(parts...)
		}
		return Or(parts...)
	}
	return f
}

// Atoms counts the atoms, each as often as it stands there.
func (f *Formula) Atoms() int {
	if f.op == OpAtom {
		return 1
	}
	n := 0
	for _, p := range f.parts {
		n += p.Atoms()
	}
	return n
}

// Reads says whether an atom is about one of the kinds.
func (f *Formula) Reads(kinds ...Kind) bool {
	if f.op == OpAtom {
		return slices.Contains(kinds, f.atom.Kind)
	}
	return slices.ContainsFunc(f.parts, func(p *Formula) bool { return p.Reads(kinds...) })
}

// String is for tests and for comparing; nobody parses it.
func (f *Formula) String() string {
	switch f.op {
	case OpFalse:
		return "false"
	case OpTrue:
		return "true"
	case OpAtom:
		return f.atom.String()
	case OpNot:
		return "not " + f.parts[0].String()
	}
	word := " and "
	if f.op == OpOr {
		word = " or "
	}
	texts := make([]string, len(f.parts))
	for i, p := range f.parts {
		texts[i] = p.String()
	}
	return "(" + strings.Join(texts, word) + ")"
}

// Segments are those of the path to a claim.
func (a Atom) Segments() []string { return strings.Split(a.Path, "\x00") }

// Holds says whether the test is true of a value that is there, for the tests of
// texts.
func (a Atom) Holds(value string) bool {
	want := a.Value
	if a.Fold {
		value, want = lower(value), lower(want)
	}
	switch a.Test {
	case Present:
		return true
	case Equal:
		return value == want
	case Prefix:
		return strings.HasPrefix(value, want)
	case Suffix:
		return strings.HasSuffix(value, want)
	case Contains:
		return strings.Contains(value, want)
	case Regex:
		// Go has no \C; its dot takes bytes that are not UTF-8 one by one.
		re, err := regexp.Compile(`\A(?:` + strings.ReplaceAll(want, `\C`, `(?s:.)`) + `)\z`)
		return err == nil && re.MatchString(value)
	}
	return false
}

// lower is for the letters of ASCII.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// String names the value, the test and what it is compared with.
func (a Atom) String() string {
	subject := [...]string{"header", "principal", "destination.principal", "source.ip", "destination.ip", "destination.port", "sni", "claim", "token", "no token"}[a.Kind]
	if a.Name != "" {
		subject += "[" + a.Name + "]"
	}
	if a.Path != "" {
		subject += "[" + strings.ReplaceAll(a.Path, "\x00", "][") + "]"
	}
	if a.Fold {
		subject = "lower(" + subject + ")"
	}
	test := [...]string{"is there", "==", "begins with", "ends with", "contains", "matches", "in", "has", "is true", "is false", "is a string", "is a list"}[a.Test]
	if a.Value == "" && a.Test != Equal {
		return subject + " " + test
	}
	return subject + " " + test + " " + strconv.Quote(a.Value)
}
