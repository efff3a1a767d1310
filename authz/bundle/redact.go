package bundle

import (
	"net/url"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/writ-mesh/writ/authz/decisionlog"
)

// redact takes credentials out of an input document before OPA's plugin gets it:
// headers, the path and the query by the rules of the mesh's own decision log, and
// the raw form of the headers altogether. OPA logs all of that unless a policy
// masks it; a log is no place to learn that such a policy is missing. Bodies are
// left as they are: what is secret in one, only a mask can say.
func redact(document ast.Value, r *decisionlog.Redactor) ast.Value {
	out, ok := document.(ast.Object)
	if !ok {
		return document
	}
	out = changed(out, "parsed_query", func(v ast.Value) ast.Value { return redactQuery(v, r) })
	return within(out, []string{"attributes", "request", "http"}, func(http ast.Object) ast.Object {
		http = changed(http, "headers", func(v ast.Value) ast.Value { return redactHeaders(v, r) })
		http = changed(http, "headerMap", func(ast.Value) ast.Value { return nil })
		return changed(http, "path", func(v ast.Value) ast.Value { return redactPath(v, r) })
	})
}

// within changes the object at a path, and copies those on the way: the document
// is shared.
func within(o ast.Object, path []string, change func(ast.Object) ast.Object) ast.Object {
	if len(path) == 0 {
		return change(o)
	}
	return changed(o, path[0], func(v ast.Value) ast.Value {
		child, ok := v.(ast.Object)
		if !ok {
			return v
		}
		return within(child, path[1:], change)
	})
}

// changed is a copy of an object in which one value is changed, or gone if it
// became nil; the object itself if it has no such value.
func changed(o ast.Object, key string, change func(ast.Value) ast.Value) ast.Object {
	name := ast.InternedTerm(key)
	old := o.Get(name)
	if old == nil {
		return o
	}
	value := change(old.Value)
	out := ast.NewObjectWithCapacity(o.Len())
	o.Foreach(func(k, v *ast.Term) {
		switch {
		case !k.Equal(name):
			out.Insert(k, v)
		case value != nil:
			out.Insert(k, ast.NewTerm(value))
		}
	})
	return out
}

// mapped is a copy of an object of texts, each of them changed.
func mapped(v ast.Value, change func(key, value string) string) ast.Value {
	o, ok := v.(ast.Object)
	if !ok {
		return v
	}
	out := ast.NewObjectWithCapacity(o.Len())
	o.Foreach(func(k, v *ast.Term) {
		key, isText := k.Value.(ast.String)
		value, alsoText := v.Value.(ast.String)
		if !isText || !alsoText {
			out.Insert(k, v)
			return
		}
		out.Insert(k, ast.StringTerm(change(string(key), string(value))))
	})
	return out
}

func redactHeaders(v ast.Value, r *decisionlog.Redactor) ast.Value {
	return mapped(v, func(name, value string) string {
		if name == ":path" {
			return wholePath(value, r)
		}
		return r.Header(name, value)
	})
}

func redactPath(v ast.Value, r *decisionlog.Redactor) ast.Value {
	s, ok := v.(ast.String)
	if !ok {
		return v
	}
	return ast.String(wholePath(string(s), r))
}

func wholePath(path string, r *decisionlog.Redactor) string {
	plain, query := r.Path(path)
	if query != "" {
		plain += "?" + query
	}
	return plain
}

// redactQuery replaces the values of parameters that may not be written down.
func redactQuery(v ast.Value, r *decisionlog.Redactor) ast.Value {
	o, ok := v.(ast.Object)
	if !ok {
		return v
	}
	out := ast.NewObjectWithCapacity(o.Len())
	o.Foreach(func(k, v *ast.Term) {
		key, _ := k.Value.(ast.String)
		values, ok := v.Value.(*ast.Array)
		if !ok {
			return
		}
		var kept []*ast.Term
		values.Foreach(func(t *ast.Term) {
			text, _ := t.Value.(ast.String)
			pair := url.QueryEscape(string(key)) + "=" + url.QueryEscape(string(text))
			if r.Query(pair) != pair {
				t = ast.StringTerm(decisionlog.Redacted)
			}
			kept = append(kept, t)
		})
		out.Insert(k, ast.ArrayTerm(kept...))
	})
	return out
}
