package explain

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// celExpression evaluates the part of the Common Expression Language that quotas are
// compiled to, as strictly as Envoy: what is not there is an error, and errors are only
// outweighed by the other side of && and ||.
type celExpression struct {
	rest string
	env  map[string]any
}

var errCEL = errors.New("no value")

func evalCEL(text string, env map[string]any) (any, error) {
	e := &celExpression{rest: text, env: env}
	run := e.choice()
	if e.skip(); e.rest != "" {
		return nil, fmt.Errorf("%w: %q is left of %q", errSyntax, e.rest, text)
	}
	return run()
}

var errSyntax = errors.New("syntax")

type celRun func() (any, error)

func (e *celExpression) skip() { e.rest = strings.TrimLeft(e.rest, " \n") }

func (e *celExpression) take(token string) bool {
	e.skip()
	rest, ok := strings.CutPrefix(e.rest, token)
	if ok {
		e.rest = rest
	}
	return ok
}

func (e *celExpression) choice() celRun {
	test := e.or()
	if !e.take("?") {
		return test
	}
	yes := e.choice()
	if !e.take(":") {
		return failing("want : at %q", e.rest)
	}
	no := e.choice()
	return func() (any, error) {
		v, err := test()
		if err != nil {
			return nil, err
		}
		if v.(bool) { //nolint:forcetypeassert // a test panics
			return yes()
		}
		return no()
	}
}

func failing(format string, args ...any) celRun {
	return func() (any, error) { return nil, fmt.Errorf("%w: "+format, append([]any{errSyntax}, args...)...) }
}

// logic is && and ||: one side that decides outweighs an error of the other.
func logic(a, b celRun, decides bool) celRun {
	return func() (any, error) {
		x, errX := a()
		if errX == nil && x == decides {
			return decides, nil
		}
		y, errY := b()
		if errY == nil && y == decides {
			return decides, nil
		}
		return !decides, errors.Join(errX, errY)
	}
}

func (e *celExpression) or() celRun {
	out := e.and()
	for e.take("||") {
		out = logic(out, e.and(), true)
	}
	return out
}

func (e *celExpression) and() celRun {
	out := e.relation()
	for e.take("&&") {
		out = logic(out, e.relation(), false)
	}
	return out
}

func (e *celExpression) relation() celRun {
	left := e.unary()
	for _, op := range []string{"==", "!=", "<=", "in "} {
		if !e.take(op) {
			continue
		}
		right := e.unary()
		return func() (any, error) {
			x, errX := left()
			y, errY := right()
			if err := errors.Join(errX, errY); err != nil {
				return nil, err
			}
			switch op {
			case "in ":
				if list, ok := y.([]any); ok {
					return slices.Contains(list, x), nil
				}
				_, ok := y.(map[string]any)[x.(string)] //nolint:forcetypeassert // a test panics
				return ok, nil
			case "<=":
				return x.(int) <= y.(int), nil //nolint:forcetypeassert // a test panics
			}
			return (x == y) == (op == "=="), nil
		}
	}
	return left
}

func (e *celExpression) unary() celRun {
	if e.skip(); strings.HasPrefix(e.rest, "!") && !strings.HasPrefix(e.rest, "!=") {
		e.rest = e.rest[1:]
		of := e.unary()
		return func() (any, error) {
			v, err := of()
			if err != nil {
				return nil, err
			}
			return !v.(bool), nil //nolint:forcetypeassert // a test panics
		}
	}
	return e.postfix()
}

var celName = regexp.MustCompile(`^[a-z_][a-zA-Z0-9_]*`)

func (e *celExpression) postfix() celRun {
	out := e.primary()
	for {
		switch {
		case e.take("["):
			of, key := out, e.choice()
			if !e.take("]") {
				return failing("want ] at %q", e.rest)
			}
			out = field(of, key)
		case e.take("."):
			name := celName.FindString(e.rest)
			e.rest = e.rest[len(name):]
			of := out
			if e.take("(") {
				out = method(name, of, e.arguments())
			} else {
				out = field(of, func() (any, error) { return name, nil })
			}
		default:
			return out
		}
	}
}

func (e *celExpression) arguments() []celRun {
	var out []celRun
	for !e.take(")") {
		out = append(out, e.choice())
		if e.take(","); e.rest == "" {
			return out
		}
	}
	return out
}

func field(of, key celRun) celRun {
	return func() (any, error) {
		m, err := of()
		if err != nil {
			return nil, err
		}
		k, err := key()
		if err != nil {
			return nil, err
		}
		v, ok := m.(map[string]any)[k.(string)] //nolint:forcetypeassert // a test panics
		if !ok {
			return nil, fmt.Errorf("%w: %v", errCEL, k)
		}
		return v, nil
	}
}

func method(name string, of celRun, args []celRun) celRun {
	return func() (any, error) {
		target, err := of()
		if err != nil {
			return nil, err
		}
		var texts []string
		for _, a := range args {
			v, err := a()
			if err != nil {
				return nil, err
			}
			texts = append(texts, v.(string)) //nolint:forcetypeassert // a test panics
		}
		s, _ := target.(string)
		switch name {
		case "size":
			return len(s), nil
		case "startsWith":
			return strings.HasPrefix(s, texts[0]), nil
		case "endsWith":
			return strings.HasSuffix(s, texts[0]), nil
		case "matches":
			return regexp.MustCompile(texts[0]).MatchString(s), nil
		case "extract": // re.extract(text, expression, rewrite)
			at := regexp.MustCompile(texts[1]).FindStringSubmatch(texts[0])
			if at == nil {
				return nil, errCEL
			}
			out := texts[2]
			for i, group := range at {
				out = strings.ReplaceAll(out, `\`+strconv.Itoa(i), group)
			}
			return out, nil
		}
		return nil, fmt.Errorf("%w: no function %s", errSyntax, name)
	}
}

func (e *celExpression) primary() celRun {
	e.skip()
	switch {
	case e.take("("):
		out := e.choice()
		if !e.take(")") {
			return failing("want ) at %q", e.rest)
		}
		return out
	case strings.HasPrefix(e.rest, "'"):
		text := e.literal()
		return func() (any, error) { return text, nil }
	}
	if e.take("[") {
		return e.list()
	}
	if digits := celNumber.FindString(e.rest); digits != "" {
		e.rest = e.rest[len(digits):]
		n, err := strconv.Atoi(digits)
		return func() (any, error) { return n, err }
	}
	name := celName.FindString(e.rest)
	if name == "" {
		return failing("nothing at %q", e.rest)
	}
	e.rest = e.rest[len(name):]
	switch {
	case name == "list" || name == "map":
		return func() (any, error) { return name, nil }
	case name == "type" && e.take("("):
		of := e.choice()
		if !e.take(")") {
			return failing("want ) at %q", e.rest)
		}
		return typeName(of)
	}
	if name == "true" || name == "false" {
		return func() (any, error) { return name == "true", nil }
	}
	v, ok := e.env[name]
	if !ok {
		return failing("unknown name %s", name)
	}
	return func() (any, error) { return v, nil }
}

var celNumber = regexp.MustCompile(`^[0-9]+`)

// list reads what is between brackets.
func (e *celExpression) list() celRun {
	var of []celRun
	for !e.take("]") {
		of = append(of, e.choice())
		if e.take(","); e.rest == "" {
			return failing("want ] at the end")
		}
	}
	return func() (any, error) {
		out := []any{}
		for _, run := range of {
			v, err := run()
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	}
}

// typeName is the name of a type, as far as expressions ask for it.
func typeName(of celRun) celRun {
	return func() (any, error) {
		v, err := of()
		if err != nil {
			return nil, err
		}
		switch v.(type) {
		case []any:
			return "list", nil
		case map[string]any:
			return "map", nil
		}
		return "another", nil
	}
}

// literal reads a text in single quotes.
func (e *celExpression) literal() string {
	var b strings.Builder
	i := 1
	for ; i < len(e.rest) && e.rest[i] != '\''; i++ {
		if e.rest[i] != '\\' {
			b.WriteByte(e.rest[i])
			continue
		}
		i++
		switch c := e.rest[i]; c {
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 'x':
			n, _ := strconv.ParseUint(e.rest[i+1:i+3], 16, 8)
			b.WriteByte(byte(n))
			i += 2
		default:
			b.WriteByte(c)
		}
	}
	e.rest = e.rest[min(i+1, len(e.rest)):]
	return b.String()
}
