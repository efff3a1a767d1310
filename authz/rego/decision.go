package rego

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/types/known/structpb"
)

// Pair is a header or a query parameter.
type Pair struct{ Key, Value string }

// Decision is what a policy said. Besides Allowed everything is optional and
// set by the object form of a decision only; the names of its keys are those of
// the OPA-Envoy plugin, and "reason" is ours.
type Decision struct {
	Allowed bool
	// Structured says that the decision was an object.
	Structured bool
	// Headers ("headers") go to the upstream when allowed, to the client when not.
	Headers []Pair
	// ResponseHeaders ("response_headers_to_add") go to the client when allowed.
	ResponseHeaders []Pair
	// RemoveHeaders ("request_headers_to_remove") are taken from the request.
	RemoveHeaders []string
	// Body ("body") and Status ("http_status", 0 if unset) are those of a refusal.
	Body   string
	Status int
	// Metadata ("dynamic_metadata") goes to the filters behind and the access log.
	Metadata *structpb.Struct
	// SetQuery ("query_parameters_to_set") and RemoveQuery
	// ("query_parameters_to_remove") change the request.
	SetQuery    []Pair
	RemoveQuery []string
	// Reason ("reason") is a sentence for logs and the client.
	Reason string
	// object is the object form as the policy gave it.
	object map[string]any
	// size is that of the result in bytes of text; 0 for a boolean.
	size int
}

// Size is about how many bytes a decision holds in memory, with what it refers to.
func (d Decision) Size() int { return 512 + 6*d.size }

// Result is the policy's result as it was, in JSON's types, for OPA's decision
// log. It is shared: read it only.
func (d Decision) Result() any {
	if d.Structured {
		return d.object
	}
	return d.Allowed
}

// FormError says that a policy's result is no decision.
type FormError struct{ text string }

func (e *FormError) Error() string { return e.text }

func formError(format string, args ...any) error {
	return &FormError{text: "decision: " + fmt.Sprintf(format, args...)}
}

// readDecision reads a decision from a JSON value with json.Number as numbers.
func readDecision(v any) (Decision, error) {
	switch v := v.(type) {
	case bool:
		return Decision{Allowed: v}, nil
	case map[string]any:
		return readObject(v)
	}
	return Decision{}, formError("%s instead of a boolean or an object", kindOf(v))
}

func readObject(m map[string]any) (Decision, error) {
	v, ok := m["allowed"]
	if !ok {
		return Decision{}, formError(`the key "allowed" is missing`)
	}
	allowed, ok := v.(bool)
	if !ok {
		return Decision{}, formError(`"allowed" is %s instead of a boolean`, kindOf(v))
	}
	d := Decision{Allowed: allowed, Structured: true, object: m}
	for key, read := range map[string]func(any) error{
		"headers":                    func(v any) (err error) { d.Headers, err = readHeaders(v); return },
		"response_headers_to_add":    func(v any) (err error) { d.ResponseHeaders, err = readHeaders(v); return },
		"request_headers_to_remove":  func(v any) (err error) { d.RemoveHeaders, err = readStrings(v); return },
		"query_parameters_to_remove": func(v any) (err error) { d.RemoveQuery, err = readStrings(v); return },
		"query_parameters_to_set":    func(v any) (err error) { d.SetQuery, err = readPairs(v); return },
		"body":                       func(v any) (err error) { d.Body, err = readString(v); return },
		"reason":                     func(v any) (err error) { d.Reason, err = readString(v); return },
		"http_status":                func(v any) (err error) { d.Status, err = readStatus(v); return },
		"dynamic_metadata":           func(v any) (err error) { d.Metadata, err = readStruct(v); return },
	} {
		v, ok := m[key]
		if !ok {
			continue
		}
		if err := read(v); err != nil {
			return Decision{}, formError("%q: %v", key, err)
		}
	}
	return d, nil
}

// readHeaders reads an object, or a list of objects, of names with a value or a
// list of values. A name or value that HTTP does not allow is refused here:
// Envoy would refuse the whole answer without saying why.
func readHeaders(v any) ([]Pair, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var all []Pair
	for _, e := range list {
		pairs, err := readPairs(e)
		if err != nil {
			return nil, err
		}
		all = append(all, pairs...)
	}
	for _, p := range all {
		if !httpguts.ValidHeaderFieldName(strings.TrimPrefix(p.Key, ":")) || !httpguts.ValidHeaderFieldValue(p.Value) {
			return nil, fmt.Errorf("header %q is not valid in HTTP", p.Key)
		}
	}
	return all, nil
}

// readPairs reads an object whose values are strings or lists of strings, in
// the order of the keys.
func readPairs(v any) ([]Pair, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s instead of an object", kindOf(v))
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var pairs []Pair
	for _, k := range keys {
		switch v := m[k].(type) {
		case string:
			pairs = append(pairs, Pair{k, v})
		default:
			values, err := readStrings(v)
			if err != nil {
				return nil, fmt.Errorf("value of %q: %w", k, err)
			}
			for _, s := range values {
				pairs = append(pairs, Pair{k, s})
			}
		}
	}
	return pairs, nil
}

func readStrings(v any) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("%s instead of a list of strings", kindOf(v))
	}
	out := make([]string, len(list))
	for i, e := range list {
		s, err := readString(e)
		if err != nil {
			return nil, err
		}
		out[i] = s
	}
	return out, nil
}

func readString(v any) (string, error) {
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s instead of a string", kindOf(v))
	}
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("text that is not UTF-8")
	}
	return s, nil
}

// readStatus accepts the codes that Envoy knows (envoy.type.v3.StatusCode).
func readStatus(v any) (int, error) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, fmt.Errorf("%s instead of a number", kindOf(v))
	}
	code, err := n.Int64()
	if err != nil {
		return 0, fmt.Errorf("%s is not a whole number", n)
	}
	if _, known := typev3.StatusCode_name[int32(code)]; !known || code < 100 || code > 599 {
		return 0, fmt.Errorf("%d is not a status of HTTP that Envoy sends", code)
	}
	return int(code), nil
}

func readStruct(v any) (*structpb.Struct, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s instead of an object", kindOf(v))
	}
	return structpb.NewStruct(m)
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case json.Number, int, int64, float64:
		return "a number"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("a %T", v)
}
