package meshdir

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// The specifications of rbac.istio.io/v1alpha1, whose published types are gone:
// the fields are those of Istio 1.5, the hidden ones included.

type serviceRoleSpec struct {
	Rules []accessRule `json:"rules"`
}

type accessRule struct {
	Services    []string         `json:"services"`
	Hosts       []string         `json:"hosts"`
	NotHosts    []string         `json:"notHosts"`
	Paths       []string         `json:"paths"`
	NotPaths    []string         `json:"notPaths"`
	Methods     []string         `json:"methods"`
	NotMethods  []string         `json:"notMethods"`
	Ports       []uint32         `json:"ports"`
	NotPorts    []uint32         `json:"notPorts"`
	Constraints []roleConstraint `json:"constraints"`
}

type roleConstraint struct {
	Key    string   `json:"key"`
	Values []string `json:"values"`
}

type serviceRoleBindingSpec struct {
	Subjects []roleSubject `json:"subjects"`
	RoleRef  *roleRef      `json:"roleRef"`
	Mode     string        `json:"mode"`
}

type roleRef struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

type roleSubject struct {
	User          string            `json:"user"`
	Names         []string          `json:"names"`
	NotNames      []string          `json:"notNames"`
	Group         string            `json:"group"`
	Groups        []string          `json:"groups"`
	NotGroups     []string          `json:"notGroups"`
	Namespaces    []string          `json:"namespaces"`
	NotNamespaces []string          `json:"notNamespaces"`
	IPs           []string          `json:"ips"`
	NotIPs        []string          `json:"notIps"`
	Properties    map[string]string `json:"properties"`
}

type rbacConfigSpec struct {
	Mode      string      `json:"mode"`
	Inclusion *rbacTarget `json:"inclusion"`
	Exclusion *rbacTarget `json:"exclusion"`
	// EnforcementMode has two names: Istio's task wrote the second.
	EnforcementMode      string `json:"enforcementMode"`
	EnforcementModeProto string `json:"enforcement_mode"`
}

type rbacTarget struct {
	Services   []string `json:"services"`
	Namespaces []string `json:"namespaces"`
}

// Names for all callers, and for all with an identity, in a binding.
const (
	allUsers              = "allUsers"
	allAuthenticatedUsers = "allAuthenticatedUsers"
	groupsClaim           = "request.auth.claims[groups]"
	rbacConfigName        = "default"
)

func checkServiceRole(c *checker) {
	s := c.object.spec.(*serviceRoleSpec)
	if len(s.Rules) == 0 {
		c.errorf("spec.rules", "a ServiceRole needs at least one rule")
	}
	for i := range s.Rules {
		c.accessRule(index("spec.rules", i), &s.Rules[i])
	}
}

func (c *checker) accessRule(at string, r *accessRule) {
	if len(r.Services) == 0 {
		c.errorf(at+".services", "no service is named: write [\"*\"] for all of the namespace")
	}
	for _, f := range []struct {
		name   string
		values []string
	}{
		{"services", r.Services},
		{"hosts", r.Hosts},
		{"notHosts", r.NotHosts},
		{"paths", r.Paths},
		{"notPaths", r.NotPaths},
		{"methods", r.Methods},
		{"notMethods", r.NotMethods},
	} {
		c.noEmpty(at+"."+f.name, f.values)
		c.wildcards(at+"."+f.name, f.values)
	}
	for _, f := range []struct {
		name  string
		paths []string
	}{{"paths", r.Paths}, {"notPaths", r.NotPaths}} {
		for i, p := range f.paths {
			if strings.ContainsAny(p, "{}") {
				c.errorf(index(at+"."+f.name, i), "%q: a ServiceRole has no templates, and no path has { or }", shorten(p))
			}
		}
		c.paths(at+"."+f.name, f.paths)
	}
	c.methods(at+".methods", r.Methods)
	c.methods(at+".notMethods", r.NotMethods)
	if len(r.Methods) > 0 && len(r.NotMethods) > 0 {
		c.errorf(at+".notMethods", "cannot go with methods: remove one")
	}
	if len(r.Ports) > 0 && len(r.NotPorts) > 0 {
		c.errorf(at+".notPorts", "cannot go with ports: remove one")
	}
	for name, ports := range map[string][]uint32{"ports": r.Ports, "notPorts": r.NotPorts} {
		for i, p := range ports {
			if p > 65535 {
				c.errorf(index(at+"."+name, i), "%d is not a port from 0 to 65535", p)
			}
		}
	}
	seen := map[string]bool{}
	for i, k := range r.Constraints {
		place := index(at+".constraints", i)
		switch {
		case seen[k.Key]:
			c.errorf(place+".key", "%s is given twice: write one constraint with all values", shorten(k.Key))
		case k.Key == condition.Port && len(r.Ports)+len(r.NotPorts) > 0:
			c.errorf(place+".key", "cannot go with ports or notPorts: remove one")
		}
		seen[k.Key] = true
		c.constraint(place, k)
	}
}

// workloadKeys are constraints that are about the workload itself.
func workloadKey(key string) bool {
	name, rest, bracket := strings.Cut(key, "[")
	switch name {
	case model.DestinationLabels:
		return bracket && len(rest) > 1 && strings.HasSuffix(rest, "]")
	case model.DestinationName, model.DestinationNamespace, model.DestinationUser:
		return !bracket
	}
	return false
}

// constraintKeys are the constraints that are about the call, by the table of
// conditions: of what a caller is only his headers are among them.
func constraintKey(key string) (condition.Key, bool) {
	k, _, ok := condition.Find(key)
	return k, ok && (k.Side == condition.Called || k.Name == condition.Headers)
}

func (c *checker) constraint(at string, k roleConstraint) {
	if len(k.Values) == 0 {
		c.errorf(at+".values", "give at least one value")
	}
	known, ok := constraintKey(k.Key)
	switch {
	case ok:
		c.conditionValues(at+".values", known.Values, k.Values)
		if known.Values == condition.Text {
			c.wildcards(at+".values", k.Values)
		}
		return
	case workloadKey(k.Key):
		c.noEmpty(at+".values", k.Values)
		c.wildcards(at+".values", k.Values)
		return
	case k.Key == "":
		c.errorf(at+".key", "a key is missing")
		return
	case k.Key == model.DestinationLabels || known.Name == condition.Headers:
		c.errorf(at+".key", "%s needs a name in brackets, such as %[1]s[version]", k.Key)
		return
	}
	c.errorf(at+".key", "unknown constraint %q%s", shorten(k.Key), didYouMean(k.Key, []string{
		condition.DestinationIP, condition.Port, condition.SNI, model.DestinationLabels + "[name]", model.DestinationName, model.DestinationNamespace,
		model.DestinationUser, condition.Headers + "[name]",
	}))
}

func checkServiceRoleBinding(c *checker) {
	s := c.object.spec.(*serviceRoleBindingSpec)
	switch {
	case s.RoleRef == nil:
		c.errorf("spec.roleRef", "the role is missing: write {kind: ServiceRole, name: ...}")
	case s.RoleRef.Kind != "ServiceRole":
		c.errorf("spec.roleRef.kind", "%q is not ServiceRole", shorten(s.RoleRef.Kind))
	case s.RoleRef.Name == "":
		c.errorf("spec.roleRef.name", "the name of the role is missing")
	}
	if len(s.Subjects) == 0 {
		c.errorf("spec.subjects", "a ServiceRoleBinding needs at least one subject")
	}
	c.enforcement("spec.mode", s.Mode)
	for i := range s.Subjects {
		c.roleSubject(index("spec.subjects", i), &s.Subjects[i])
	}
}

func (c *checker) enforcement(at, mode string) {
	if modes := []string{"ENFORCED", "PERMISSIVE"}; mode != "" && !slices.Contains(modes, mode) {
		c.errorf(at, "unknown mode %q%s", shorten(mode), didYouMean(mode, modes))
	}
}

func (c *checker) roleSubject(at string, s *roleSubject) {
	lists := map[string][]string{
		"names": s.Names, "notNames": s.NotNames, "groups": s.Groups, "notGroups": s.NotGroups, "namespaces": s.Namespaces, "notNamespaces": s.NotNamespaces,
	}
	total := len(s.Properties) + len(s.IPs) + len(s.NotIPs)
	for name, values := range lists {
		total += len(values)
		c.noEmpty(at+"."+name, values)
		if !strings.HasSuffix(strings.ToLower(name), "namespaces") {
			c.wildcards(at+"."+name, values)
		}
	}
	if total == 0 && s.User == "" && s.Group == "" {
		c.errorf(at, "the subject is empty: name whom it is about")
	}
	for _, name := range []string{"names", "notNames"} {
		if i := slices.Index(lists[name], "*"); i >= 0 {
			c.errorf(index(at+"."+name, i), "\"*\" is not clear here: write %s or %s", allUsers, allAuthenticatedUsers)
		}
	}
	c.wildcard(at+".user", s.User)
	for name, values := range map[string][]string{"ips": s.IPs, "notIps": s.NotIPs} {
		for i, v := range values {
			c.network(index(at+"."+name, i), v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Properties)) {
		c.property(at+".properties["+k+"]", k, s.Properties[k], s)
	}
}

func (c *checker) property(at, key, value string, s *roleSubject) {
	k, _, ok := condition.Find(key)
	// What a caller is; serviceAccount, trustDomain and remote.ip came with AuthorizationPolicy.
	ok = ok && k.Side == condition.Caller && !slices.Contains([]string{condition.ServiceAccount, condition.TrustDomain, condition.RemoteIP}, k.Name)
	if !ok {
		hint := didYouMean(key, []string{
			condition.SourceIP, condition.Namespace, condition.Principal, condition.Headers + "[name]", condition.TokenPrincipal, condition.Audiences,
			condition.Presenter, condition.Claims + "[name]",
		})
		if key == "source.user" || key == "source.name" {
			hint = ": write " + condition.Principal
		}
		c.errorf(at, "unknown property %q%s", shorten(key), hint)
		return
	}
	for field, twice := range map[string]bool{
		"names": key == condition.Principal && len(s.Names) > 0, "groups": key == groupsClaim && len(s.Groups) > 0,
		"namespaces": key == condition.Namespace && len(s.Namespaces) > 0, "ips": key == condition.SourceIP && len(s.IPs) > 0,
	} {
		if twice {
			c.errorf(at, "cannot go with %s: remove one", field)
		}
	}
	switch {
	case value == "":
		c.errorf(at, "the value is empty")
	case k.Values == condition.Networks:
		c.network(at, value)
	case k.Name != condition.Namespace:
		c.wildcard(at, value)
	}
}

func checkRbacConfig(c *checker) {
	s := c.object.spec.(*rbacConfigSpec)
	if c.object.meta.Name != rbacConfigName {
		c.errorf("metadata.name", "%s is one for the mesh, and its name is %q", c.object.meta.Kind, rbacConfigName)
	}
	if modes := rbacModes(); s.Mode != "" {
		if _, ok := modes[s.Mode]; !ok {
			c.errorf("spec.mode", "unknown mode %q%s", shorten(s.Mode), didYouMean(s.Mode, slices.Collect(maps.Keys(modes))))
		}
	}
	if s.Mode == "ON_WITH_INCLUSION" && s.Inclusion == nil {
		c.errorf("spec.inclusion", "is missing: write {} for nothing")
	}
	if s.Mode == "ON_WITH_EXCLUSION" && s.Exclusion == nil {
		c.errorf("spec.exclusion", "is missing: write {} for nothing")
	}
	c.enforcement("spec.enforcementMode", s.EnforcementMode)
	c.enforcement("spec.enforcement_mode", s.EnforcementModeProto)
	if s.EnforcementMode != "" && s.EnforcementModeProto != "" {
		c.errorf("spec.enforcement_mode", "is the same as enforcementMode: remove one")
	}
	for name, target := range map[string]*rbacTarget{"inclusion": s.Inclusion, "exclusion": s.Exclusion} {
		if target == nil {
			continue
		}
		for i, host := range target.Services {
			if problem := hostProblem(host, false); problem != "" || !strings.Contains(host, ".") {
				c.errorf(index("spec."+name+".services", i), "%q is not the name of a service in full, such as products.default.svc.cluster.local", shorten(host))
			}
		}
		for i, namespace := range target.Namespaces {
			if !isLabel(namespace) {
				c.errorf(index("spec."+name+".namespaces", i), "%q is not a namespace", shorten(namespace))
			}
		}
	}
}

func rbacModes() map[string]model.RbacMode {
	return map[string]model.RbacMode{
		"OFF": model.RbacOff, "ON": model.RbacOn, "ON_WITH_INCLUSION": model.RbacInclusion, "ON_WITH_EXCLUSION": model.RbacExclusion,
	}
}

func rbacConfigOf(o *object) *model.RbacConfig {
	s := o.spec.(*rbacConfigSpec)
	out := &model.RbacConfig{Meta: o.meta, Mode: rbacModes()[s.Mode], Permissive: s.EnforcementMode == "PERMISSIVE" || s.EnforcementModeProto == "PERMISSIVE"}
	target := s.Inclusion
	if out.Mode == model.RbacExclusion {
		target = s.Exclusion
	}
	if target != nil && out.Mode != model.RbacOn && out.Mode != model.RbacOff {
		out.Services, out.Namespaces = target.Services, target.Namespaces
	}
	return out
}

func serviceRoleOf(o *object) *model.ServiceRole {
	out := &model.ServiceRole{Meta: o.meta}
	for _, r := range o.spec.(*serviceRoleSpec).Rules {
		rule := model.AccessRule{Services: r.Services, To: clauses(
			model.Clause{Key: model.RoleHosts, Values: r.Hosts}, model.Clause{Key: model.RoleHosts, Values: r.NotHosts, Not: true},
			model.Clause{Key: model.RoleMethods, Values: r.Methods}, model.Clause{Key: model.RoleMethods, Values: r.NotMethods, Not: true},
			model.Clause{Key: model.RolePaths, Values: r.Paths}, model.Clause{Key: model.RolePaths, Values: r.NotPaths, Not: true},
			model.Clause{Key: condition.Port, Values: portNumbers(r.Ports)}, model.Clause{Key: condition.Port, Values: portNumbers(r.NotPorts), Not: true},
		)}
		for _, k := range r.Constraints {
			clause := model.Clause{Key: k.Key, Values: k.Values}
			if workloadKey(k.Key) {
				rule.Where = append(rule.Where, clause)
			} else {
				rule.When = append(rule.When, clause)
			}
		}
		out.Rules = append(out.Rules, rule)
	}
	return out
}

func portNumbers(ports []uint32) []string {
	var out []string
	for _, p := range ports {
		out = append(out, strconv.FormatUint(uint64(p), 10))
	}
	return out
}

// clauses leaves out those that say nothing.
func clauses(list ...model.Clause) []model.Clause {
	return slices.DeleteFunc(list, func(c model.Clause) bool { return len(c.Values) == 0 })
}

func serviceRoleBindingOf(o *object) *model.ServiceRoleBinding {
	s := o.spec.(*serviceRoleBindingSpec)
	out := &model.ServiceRoleBinding{Meta: o.meta, Role: s.RoleRef.Name, Permissive: s.Mode == "PERMISSIVE"}
	for i := range s.Subjects {
		if subject, ok := subjectOf(&s.Subjects[i]); ok {
			out.Subjects = append(out.Subjects, subject)
		}
	}
	return out
}

// subjectOf gives what a subject says; not ok if nobody is like that.
func subjectOf(s *roleSubject) (model.Subject, bool) {
	var user, group []string
	if s.User != "" {
		user = []string{s.User}
	}
	if s.Group != "" {
		group = []string{s.Group}
	}
	all := clauses(
		model.Clause{Key: condition.Principal, Values: user},
		model.Clause{Key: condition.Principal, Values: s.Names}, model.Clause{Key: condition.Principal, Values: s.NotNames, Not: true},
		model.Clause{Key: groupsClaim, Values: group}, model.Clause{Key: groupsClaim, Values: s.Groups}, model.Clause{Key: groupsClaim, Values: s.NotGroups, Not: true},
		model.Clause{Key: condition.Namespace, Values: s.Namespaces}, model.Clause{Key: condition.Namespace, Values: s.NotNamespaces, Not: true},
		model.Clause{Key: condition.SourceIP, Values: s.IPs}, model.Clause{Key: condition.SourceIP, Values: s.NotIPs, Not: true},
	)
	for _, k := range slices.Sorted(maps.Keys(s.Properties)) {
		all = append(all, model.Clause{Key: k, Values: []string{s.Properties[k]}})
	}
	var out model.Subject
	for _, clause := range all {
		if clause.Key == condition.Principal {
			if slices.ContainsFunc(clause.Values, func(v string) bool { return v == allUsers || v == "*" }) {
				if clause.Not {
					return out, false
				}
				continue // with or without an identity
			}
			clause.Values = slices.Clone(clause.Values)
			for i, v := range clause.Values {
				if v == allAuthenticatedUsers {
					clause.Values[i] = "*"
				}
			}
		}
		out.Clauses = append(out.Clauses, clause)
	}
	return out, true
}
