package replay

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/pilot/model"
)

// Suggestion is a policy that allows what was seen.
type Suggestion struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Selector  map[string]string `json:"selector,omitempty"`
	Rules     []SuggestedRule   `json:"rules"`
	// Notes say what it cannot express, or what was left out.
	Notes []string `json:"notes,omitempty"`
}

// SuggestedRule is what one caller does.
type SuggestedRule struct {
	Principal  string             `json:"principal"`
	Operations []SuggestedRequest `json:"operations"`
	// Count is how many requests it stands for.
	Count int `json:"count"`
}

// SuggestedRequest is one method with its paths, or a port.
type SuggestedRequest struct {
	Method string   `json:"method,omitempty"`
	Paths  []string `json:"paths,omitempty"`
	Port   string   `json:"port,omitempty"`
}

// maxPaths is from when on the paths of a caller with one method become their common
// beginnings.
const maxPaths = 30

// identifier is a part of a path that names one thing of many.
var identifier = regexp.MustCompile(`^([0-9]+|[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}|[0-9a-fA-F]{16,})$`)

// Suggest makes the least policy that allows what was seen and allowed at a service
// account, "<namespace>/<name>".
func Suggest(m *model.Mesh, account string, from Source) (*Suggestion, error) {
	namespace, name, ok := strings.Cut(account, "/")
	if !ok {
		return nil, fmt.Errorf("%q: want NAMESPACE/ACCOUNT", account)
	}
	s := &Suggestion{Name: name + "-seen", Namespace: namespace}
	var selectable bool
	if s.Selector, selectable = selector(m, namespace, name); !selectable {
		s.Notes = append(s.Notes, "no label tells the workloads of "+account+" from others of the namespace: add a selector")
	}
	seen := map[string]map[string]map[string]bool{} // caller, method, paths
	counts := map[string]int{}
	outside := 0
	err := from(func(r *recording.Seen) error {
		switch {
		case !r.Allowed || workload(r) != account:
		case r.From == "":
			outside += r.Count
		case strings.Contains(r.Path, decisionlog.Redacted):
			s.note("a request whose path is redacted was left out")
		default:
			method, path := r.Method, fmt.Sprint(r.Port)
			if r.TCP {
				method = ""
			} else if path = template(r.Path); path == "" || strings.Contains(method, "*") {
				s.note("a request was left out whose path or method no policy can name: it has a star or a brace")
				return nil
			}
			who := strings.TrimPrefix(r.From, "spiffe://")
			add(add(seen, who), method)[path] = true
			counts[who] += r.Count
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if outside > 0 {
		s.note(fmt.Sprintf("%d requests without an identity were left out: no policy can tell who sent them", outside))
	}
	if len(seen) == 0 {
		return nil, errors.New("nothing that was allowed is recorded of " + account + ": see writ record")
	}
	for _, who := range slices.Sorted(maps.Keys(seen)) {
		s.Rules = append(s.Rules, SuggestedRule{Principal: who, Operations: operations(seen[who]), Count: counts[who]})
	}
	return s, nil
}

func (s *Suggestion) note(text string) {
	if !slices.Contains(s.Notes, text) {
		s.Notes = append(s.Notes, text)
	}
}

func add[V any](m map[string]map[string]V, key string) map[string]V {
	if m[key] == nil {
		m[key] = map[string]V{}
	}
	return m[key]
}

// plain is what may stand beside {*} in a template, and empty parts at the ends.
var plain = regexp.MustCompile(`^[a-zA-Z0-9\-._~%!$&'()+,;:@=]+$`)

// template puts {*} in place of identifiers, and of parts with a star or brace, which
// would mean more in a policy than the caller sent. It is empty for a path that no
// policy can name.
func template(path string) string {
	parts := strings.Split(path, "/")
	template := false
	for i, p := range parts {
		if identifier.MatchString(p) || strings.ContainsAny(p, "*{}") {
			parts[i], template = "{*}", true
		}
	}
	path = strings.Join(parts, "/")
	if template && slices.ContainsFunc(strings.Split(strings.Trim(path, "/"), "/"), func(p string) bool { return p != "{*}" && !plain.MatchString(p) }) {
		return ""
	}
	return path
}

func operations(methods map[string]map[string]bool) []SuggestedRequest {
	var out []SuggestedRequest
	for _, method := range slices.Sorted(maps.Keys(methods)) {
		paths := slices.Sorted(maps.Keys(methods[method]))
		if method == "" {
			for _, port := range paths {
				out = append(out, SuggestedRequest{Port: port})
			}
			continue
		}
		if len(paths) > maxPaths {
			beginnings := map[string]bool{}
			for _, p := range paths {
				first, _, more := strings.Cut(strings.TrimPrefix(p, "/"), "/")
				if more && first != "{*}" {
					beginnings["/"+first+"/*"] = true
				} else {
					beginnings[p] = true
				}
			}
			paths = slices.Sorted(maps.Keys(beginnings))
		}
		out = append(out, SuggestedRequest{Method: method, Paths: paths})
	}
	return out
}

// selector finds the labels that all workloads of an account have, and no other of
// the namespace.
func selector(m *model.Mesh, namespace, account string) (map[string]string, bool) {
	var common map[string]string
	for _, p := range m.Proxies {
		if p.Namespace != namespace || p.ServiceAccount != account {
			continue
		}
		if common == nil {
			common = maps.Clone(p.Labels)
		}
		maps.DeleteFunc(common, func(k, v string) bool { return p.Labels[k] != v })
	}
	other := slices.ContainsFunc(m.Proxies, func(p *model.Proxy) bool {
		return p.Namespace == namespace && p.ServiceAccount != account && model.SelectorMatches(common, p.Labels)
	})
	return common, len(common) > 0 && !other
}

// YAML is the policy as a document, a dry run.
func (s *Suggestion) YAML() string {
	type object = map[string]any
	var rules []object
	for _, r := range s.Rules {
		var to []object
		for _, o := range r.Operations {
			op := object{}
			if o.Port != "" {
				op["ports"] = []string{o.Port}
			} else {
				op["methods"], op["paths"] = []string{o.Method}, o.Paths
			}
			to = append(to, object{"operation": op})
		}
		rules = append(rules, object{"from": []object{{"source": object{"principals": []string{r.Principal}}}}, "to": to})
	}
	spec := object{"action": "ALLOW", "rules": rules}
	if len(s.Selector) > 0 {
		spec["selector"] = object{"matchLabels": s.Selector}
	}
	doc := object{
		"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
		"metadata": object{"name": s.Name, "namespace": s.Namespace, "annotations": object{model.DryRunAnnotation: "true"}},
		"spec":     spec,
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# What was seen and allowed. A dry run: put it in force with writ promote %s/%s.\n", s.Namespace, s.Name)
	for _, n := range s.Notes {
		fmt.Fprintln(&out, "# Note: "+n+".")
	}
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return "# " + err.Error() + "\n" // maps of texts encode
	}
	return out.String()
}
