package rego

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/writ-mesh/writ/authz/basedoc"
)

// Bounds of single calls of built-in functions. Between two calls an evaluation
// notices that it is cancelled; what is here could take all memory, or minutes,
// within one. Each is far above what policies do. Beyond it the evaluation fails as
// a whole, which is a denial, where an error of a function is only undefined, which
// `not` would make true.
const (
	// maxText bounds a text that a function makes, in bytes.
	maxText = 16 << 20
	// maxDigits bounds the numbers that are multiplied, in decimal digits.
	maxDigits = 10_000
	// maxShift bounds bits.lsh, in bits.
	maxShift = 1 << 15
	// maxPaths bounds graph.reachable_paths, whose result may be exponential.
	maxPaths = 100_000
	// maxIndent bounds what JSON is indented with, in bytes.
	maxIndent = 64
	// maxGraphQL bounds a document, in bytes: its parser calls itself for each level.
	maxGraphQL = 256 << 10
	// maxPattern bounds patterns and documents in other languages, in bytes.
	maxPattern = 64 << 10
	// maxWidth is the greatest width and precision of a verb that package fmt takes.
	maxWidth = 1_000_000
)

// check looks at the arguments of a call; an error ends the evaluation.
type check func(args []*ast.Term) error

// LimitBuiltins puts the bounds in front of OPA's functions. OPA has one table of
// them in the process and none for each evaluation, so it is done once. Compile and
// Adopt do it; who lets OPA evaluate before does it first. It does basedoc.Register too,
// for the same reason.
func LimitBuiltins() { limitBuiltins() }

var limitBuiltins = sync.OnceFunc(func() {
	basedoc.Register()
	for name, c := range map[string]check{
		ast.BitsShiftLeft.Name:               checkShift,
		ast.Multiply.Name:                    checkDigits,
		ast.Product.Name:                     checkDigits,
		ast.Concat.Name:                      checkConcat,
		ast.Replace.Name:                     checkReplace,
		ast.ReplaceN.Name:                    checkReplaceN,
		ast.RegexReplace.Name:                checkRegexReplace,
		ast.Sprintf.Name:                     checkSprintf,
		ast.RenderTemplate.Name:              checkTemplate,
		ast.InternalTemplateString.Name:      checkWritten,
		ast.JSONMarshal.Name:                 checkWritten,
		ast.JSONMarshalWithOptions.Name:      checkMarshalOptions,
		ast.YAMLMarshal.Name:                 checkWritten,
		ast.URLQueryEncodeObject.Name:        checkWritten,
		ast.JSONMatchSchema.Name:             checkWritten,
		ast.JSONSchemaVerify.Name:            checkWritten,
		ast.ReachablePathsBuiltin.Name:       checkPaths,
		ast.GraphQLParse.Name:                shorter(maxGraphQL),
		ast.GraphQLParseAndVerify.Name:       shorter(maxGraphQL),
		ast.GraphQLParseQuery.Name:           shorter(maxGraphQL),
		ast.GraphQLParseSchema.Name:          shorter(maxGraphQL),
		ast.GraphQLIsValid.Name:              shorter(maxGraphQL),
		ast.GraphQLSchemaIsValid.Name:        shorter(maxGraphQL),
		ast.RegoParseModule.Name:             shorter(maxPattern),
		ast.GlobsMatch.Name:                  shorter(1 << 10),
		ast.RegexIsValid.Name:                patternShorter,
		ast.RegexMatch.Name:                  patternShorter,
		ast.RegexMatchDeprecated.Name:        patternShorter,
		ast.RegexSplit.Name:                  patternShorter,
		ast.RegexFind.Name:                   patternShorter,
		ast.RegexFindAllStringSubmatch.Name:  patternShorter,
		ast.RegexTemplateMatch.Name:          patternShorter,
		ast.GlobMatch.Name:                   patternShorter,
		ast.CryptoX509ParseCertificates.Name: shorter(1 << 20),
	} {
		if f := topdown.GetBuiltin(name); f != nil {
			topdown.RegisterBuiltinFunc(name, checked(name, f, c))
		}
	}
	for _, name := range []string{ast.ToNumber.Name, ast.JSONUnmarshal.Name, ast.YAMLUnmarshal.Name, ast.JWTDecode.Name, ast.JWTDecodeVerify.Name} {
		if f := topdown.GetBuiltin(name); f != nil {
			topdown.RegisterBuiltinFunc(name, smallNumbers(name, f))
		}
	}
})

func checked(name string, f topdown.BuiltinFunc, c check) topdown.BuiltinFunc {
	return func(b topdown.BuiltinContext, args []*ast.Term, iter func(*ast.Term) error) error {
		if err := c(args); err != nil {
			return halt(name, err)
		}
		return f(b, args, iter)
	}
}

// smallNumbers lets no number out of a text that is long when it is written out:
// 1e999999999 is eleven bytes until something is added to it.
func smallNumbers(name string, f topdown.BuiltinFunc) topdown.BuiltinFunc {
	return func(b topdown.BuiltinContext, args []*ast.Term, iter func(*ast.Term) error) error {
		return f(b, args, func(t *ast.Term) error {
			if !valueNumbersFit(t.Value) {
				return halt(name, errNumber)
			}
			return iter(t)
		})
	}
}

func halt(name string, err error) error {
	return topdown.Halt{Err: &topdown.Error{Code: topdown.BuiltinErr, Message: name + ": " + err.Error()}}
}

var errLarge = errors.New("the result would be too large")

func checkShift(args []*ast.Term) error {
	if n, ok := args[1].Value.(ast.Number); ok {
		if i, ok := n.Int(); !ok || i > maxShift {
			return errLarge
		}
	}
	return checkDigits(args[:1])
}

// checkDigits adds up the digits of all numbers in the arguments.
func checkDigits(args []*ast.Term) error {
	n := 0
	add := func(t *ast.Term) {
		if x, ok := t.Value.(ast.Number); ok {
			n += len(x)
		}
	}
	for _, a := range args {
		add(a)
		each(a.Value, func(t *ast.Term) bool { add(t); return n <= maxDigits })
	}
	if n > maxDigits {
		return fmt.Errorf("a number has more than %d digits", maxDigits)
	}
	return nil
}

// each calls f with the elements of a list or a set until it returns false.
func each(v ast.Value, f func(*ast.Term) bool) {
	switch v := v.(type) {
	case *ast.Array:
		for i := range v.Len() {
			if !f(v.Elem(i)) {
				return
			}
		}
	case ast.Set:
		v.Until(func(t *ast.Term) bool { return !f(t) })
	}
}

// textOf is the text of an argument; OPA's own function says what else is wrong.
func textOf(t *ast.Term) string {
	s, _ := t.Value.(ast.String)
	return string(s)
}

func bounded(n int) error {
	if n > maxText {
		return errLarge
	}
	return nil
}

func checkConcat(args []*ast.Term) error {
	n, sep := 0, len(textOf(args[0]))
	each(args[1].Value, func(t *ast.Term) bool {
		n += sep + len(textOf(t))
		return n <= maxText+sep
	})
	return bounded(n - sep)
}

func checkReplace(args []*ast.Term) error {
	s, old, with := textOf(args[0]), textOf(args[1]), textOf(args[2])
	if len(with) <= len(old) || (len(s)+1)*len(with) <= maxText {
		return nil
	}
	return bounded(len(s) + strings.Count(s, old)*(len(with)-len(old)))
}

func checkReplaceN(args []*ast.Term) error {
	patterns, ok := args[0].Value.(ast.Object)
	s := textOf(args[1])
	if !ok {
		return nil
	}
	var pairs []string
	longest := 0
	patterns.Foreach(func(k, v *ast.Term) {
		pairs = append(pairs, textOf(k), textOf(v))
		longest = max(longest, len(textOf(v)))
	})
	if (len(s)+1)*longest <= maxText {
		return nil
	}
	count := counter(0)
	_, err := strings.NewReplacer(pairs...).WriteString(&count, s)
	return err
}

// counter counts what is written up to maxText.
type counter int

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), bounded(int(*c))
}

func checkRegexReplace(args []*ast.Term) error {
	if err := patternShorter(args[1:]); err != nil {
		return err
	}
	// At most one match at each byte; what the matches themselves are is no more than
	// the text for each time that the replacement names them.
	s, with := textOf(args[0]), textOf(args[2])
	if len(s) > 0 && len(with) > maxText/len(s) {
		return errLarge
	}
	return nil
}

func checkSprintf(args []*ast.Term) error {
	format := textOf(args[0])
	left, longest := maxText, 0
	if !fits(args[1].Value, &left) {
		return errLarge
	}
	stars := strings.Count(format, "*")
	each(args[1].Value, func(t *ast.Term) bool {
		one := maxText
		_ = fits(t.Value, &one)
		longest = max(longest, maxText-one)
		return true
	})
	// Quoting writes up to four bytes for one, the names of a type some more.
	return bounded(len(format) + strings.Count(format, "%")*(4*longest+64) + stars*maxWidth + widths(format))
}

// widths adds up all numbers in a format.
func widths(format string) int {
	sum, n := 0, 0
	for i := range len(format) {
		if c := format[i]; c >= '0' && c <= '9' {
			n = min(10*n+int(c-'0'), maxWidth)
		} else {
			sum, n = sum+n, 0
		}
	}
	return sum + n
}

// checkTemplate allows a template that repeats nothing in what is repeated: with n
// bytes of template and m of values it writes n*m*m at most.
func checkTemplate(args []*ast.Term) error {
	t := textOf(args[0])
	left := maxPattern
	switch {
	case len(t) > maxPattern || !fits(args[1].Value, &left):
		return errors.New("the template or its values are too large")
	case strings.Count(t, "range") > 2 || strings.Contains(t, "template") || strings.Contains(t, "define") || strings.Contains(t, "printf"):
		return errors.New("templates with define, template, printf or three times range are not supported")
	}
	return nil
}

// checkWritten bounds what is written out as text. Values share their parts, so that
// few bytes of memory can be many of text.
func checkWritten(args []*ast.Term) error {
	left := maxText
	for _, a := range args {
		if !fits(a.Value, &left) {
			return errLarge
		}
	}
	return nil
}

func checkMarshalOptions(args []*ast.Term) error {
	if o, ok := args[1].Value.(ast.Object); ok {
		for _, name := range []string{"prefix", "indent"} {
			if t := o.Get(ast.StringTerm(name)); t != nil && len(textOf(t)) > maxIndent {
				return errLarge
			}
		}
	}
	return checkWritten(args)
}

// fits takes the size of a value as text off what is left, and is false once nothing
// is. It ends then, however large the value is.
func fits(v ast.Value, left *int) bool {
	const overhead = 4 // quotes, comma, colon
	*left -= overhead
	switch v := v.(type) {
	case ast.String:
		*left -= len(v)
	case ast.Number:
		*left -= len(v)
	case *ast.Array, ast.Set:
		each(v, func(t *ast.Term) bool { return fits(t.Value, left) })
	case ast.Object:
		v.Until(func(k, e *ast.Term) bool { return !fits(k.Value, left) || !fits(e.Value, left) })
	}
	return *left >= 0
}

// checkPaths counts the paths before they are made.
func checkPaths(args []*ast.Term) error {
	graph, ok := args[0].Value.(ast.Object)
	if !ok {
		return nil
	}
	steps := 0
	on := ast.NewSet()
	var walk func(node *ast.Term) bool
	walk = func(node *ast.Term) bool {
		if steps++; steps > maxPaths {
			return false
		}
		edges := graph.Get(node)
		if edges == nil || on.Contains(node) {
			return true
		}
		on.Add(node)
		each(edges.Value, walk)
		on = on.Diff(ast.NewSet(node))
		return steps <= maxPaths
	}
	each(args[1].Value, walk)
	if steps > maxPaths {
		return errLarge
	}
	return nil
}

func shorter(most int) check {
	return func(args []*ast.Term) error {
		for _, a := range args {
			if len(textOf(a)) > most {
				return fmt.Errorf("an argument has more than %d bytes", most)
			}
		}
		return nil
	}
}

// patternShorter is about the first argument, which is the pattern.
func patternShorter(args []*ast.Term) error { return shorter(maxPattern)(args[:1]) }

// valueNumbersFit is numbersFit for values of Rego.
func valueNumbersFit(v ast.Value) bool {
	ok := true
	switch v := v.(type) {
	case ast.Number:
		return numberFits(string(v))
	case *ast.Array, ast.Set:
		each(v, func(t *ast.Term) bool { ok = valueNumbersFit(t.Value); return ok })
	case ast.Object:
		v.Until(func(_, e *ast.Term) bool { ok = valueNumbersFit(e.Value); return !ok })
	}
	return ok
}
