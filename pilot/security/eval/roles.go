package eval

import (
	"slices"
	"strconv"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// roles gives what ServiceRoles and their bindings come to at a workload, as
// AuthorizationPolicies of action ALLOW: one for ClusterRbacConfig, by which nothing
// is allowed at the ports where it is on, and one for each binding. What a binding
// or the whole mesh has PERMISSIVE is a dry run.
//
// As in Istio 1.4 and 1.5, a workload that an enforced ALLOW or DENY policy selects
// goes by these alone. Of a rule with several subjects, or of a role with several
// rules, each pair is a rule here, which is the same because ALLOW needs one that
// matches.
func roles(m *model.Mesh, p *model.Proxy, selected Policies) []*model.AuthorizationPolicy {
	if m.RbacConfig == nil || slices.ContainsFunc(slices.Concat(selected.Deny, selected.Allow), func(o *model.AuthorizationPolicy) bool { return !model.DryRun(o) }) {
		return nil
	}
	services := servicesOf(m, p)
	on, off := guarded(m, p, services)
	if !on.any() {
		return nil
	}
	base := allowPolicy(m.RbacConfig.Meta, m.RbacConfig.Permissive)
	if off != nil {
		base.Spec.Rules = []*security.Rule{{To: []*security.Rule_To{{Operation: off}}}}
	}
	out := []*model.AuthorizationPolicy{base}
	byName := map[string]*model.ServiceRole{}
	for _, r := range m.ServiceRoles {
		if r.Namespace == p.Namespace {
			byName[r.Name] = r
		}
	}
	for _, b := range m.ServiceRoleBindings {
		role := byName[b.Role]
		if b.Namespace != p.Namespace || role == nil {
			continue
		}
		pol := allowPolicy(b.Meta, b.Permissive || m.RbacConfig.Permissive)
		for _, rule := range role.Rules {
			pol.Spec.Rules = append(pol.Spec.Rules, boundRules(&rule, b.Subjects, p, services, on)...)
		}
		if len(pol.Spec.Rules) > 0 {
			out = append(out, pol)
		}
	}
	return out
}

func allowPolicy(meta model.Meta, permissive bool) *model.AuthorizationPolicy {
	meta.Annotations = nil
	if permissive {
		meta.Annotations = map[string]string{model.DryRunAnnotation: "true"}
	}
	return &model.AuthorizationPolicy{Meta: meta, Spec: &security.AuthorizationPolicy{Action: security.AuthorizationPolicy_ALLOW}}
}

// portSet are ports of a workload; every stands for all that it has or may have.
type portSet struct {
	every bool
	ports []string
}

func (s portSet) any() bool { return s.every || len(s.ports) > 0 }

func (s portSet) and(other portSet) portSet {
	switch {
	case s.every:
		return other
	case other.every:
		return s
	}
	return portSet{ports: slices.DeleteFunc(slices.Clone(s.ports), func(p string) bool { return !slices.Contains(other.ports, p) })}
}

func (s portSet) or(other portSet) portSet {
	if s.every || other.every {
		return portSet{every: true}
	}
	all := slices.Concat(s.ports, other.ports)
	slices.Sort(all)
	return portSet{ports: slices.Compact(all)}
}

// offered is a service in front of a workload, with the workload's ports behind it.
type offered struct {
	service *model.Service
	portSet
}

func servicesOf(m *model.Mesh, p *model.Proxy) []offered {
	var out []offered
	for _, s := range m.Services {
		if !s.Selects(p) {
			continue
		}
		o := offered{service: s}
		ports, known := s.PortsOf(p)
		// A gateway has no ports of a workload: its services stand for all of it.
		if o.every = !known || p.Type == model.GatewayProxy; !o.every {
			for _, port := range ports {
				o.ports = append(o.ports, strconv.FormatUint(uint64(port), 10))
			}
		}
		out = append(out, o)
	}
	return out
}

// guarded are the ports whose callers need a role, and an operation that means the
// others, nil if there are none. A port of several services is guarded if one of
// them is; a port of none goes by its namespace.
func guarded(m *model.Mesh, p *model.Proxy, services []offered) (on portSet, off *security.Operation) {
	var none portSet
	of := none
	for _, s := range services {
		of = of.or(s.portSet)
		if m.RbacConfig.On(s.service.Namespace, s.service.Hostname) {
			on = on.or(s.portSet)
		}
	}
	switch rest := m.RbacConfig.On(p.Namespace, ""); {
	case on.every:
		return on, nil
	case !rest && len(on.ports) > 0:
		return on, &security.Operation{NotPorts: on.ports}
	case !rest || of.every:
		return on, nil
	}
	open := slices.DeleteFunc(slices.Clone(of.ports), func(port string) bool { return slices.Contains(on.ports, port) })
	if len(open) == 0 {
		return portSet{every: true}, nil
	}
	return portSet{every: true}, &security.Operation{Ports: open}
}

// boundRules are the rules by which subjects may do at the workload what one rule
// of their role says.
func boundRules(rule *model.AccessRule, subjects []model.Subject, p *model.Proxy, services []offered, on portSet) []*security.Rule {
	covered, where := portSet{}, false
	everything := slices.Contains(rule.Services, "*")
	for _, s := range services {
		if (everything || oneMatches(rule.Services, s.service.Hostname)) && holdsOf(rule.Where, p, s.service.Name) {
			covered, where = covered.or(s.portSet), true
		}
	}
	// What belongs to no service is meant by "*" alone.
	if everything && len(services) == 0 && holdsOf(rule.Where, p, "") {
		covered, where = portSet{every: true}, true
	}
	if covered = covered.and(on); !where || !covered.any() {
		return nil
	}
	to, ok := operationOf(rule.To)
	if !ok {
		return nil
	}
	call := &security.Rule{To: to}
	for _, c := range rule.When {
		call.When = append(call.When, conditionOf(c))
	}
	if !covered.every && !coversAll(covered.ports, p) {
		call.When = append(call.When, &security.Condition{Key: condition.Port, Values: covered.ports})
	}
	return withSubjects(call, subjects)
}

// coversAll says that a workload has no ports but these.
func coversAll(ports []string, p *model.Proxy) bool {
	return p.Interception == model.Explicit && !slices.ContainsFunc(p.Ports, func(w model.WorkloadPort) bool {
		return !slices.Contains(ports, strconv.FormatUint(uint64(w.Port), 10))
	})
}

// withSubjects gives a rule for each subject, and one for all of those that are
// only an identity.
func withSubjects(call *security.Rule, subjects []model.Subject) []*security.Rule {
	var out []*security.Rule
	var plain *security.Rule
	for _, s := range subjects {
		if len(s.Clauses) == 1 && s.Clauses[0].Key == condition.Principal && !s.Clauses[0].Not {
			if plain == nil {
				plain = &security.Rule{From: []*security.Rule_From{{Source: &security.Source{}}}, To: call.GetTo(), When: call.GetWhen()}
				out = append(out, plain)
			}
			source := plain.GetFrom()[0].GetSource()
			source.Principals = append(source.Principals, s.Clauses[0].Values...)
			continue
		}
		rule := &security.Rule{To: call.GetTo(), When: slices.Clone(call.GetWhen())}
		for _, c := range s.Clauses {
			rule.When = append(rule.When, conditionOf(c))
		}
		out = append(out, rule)
	}
	return out
}

func conditionOf(c model.Clause) *security.Condition {
	if c.Not {
		return &security.Condition{Key: c.Key, NotValues: c.Values}
	}
	return &security.Condition{Key: c.Key, Values: c.Values}
}

// operationOf is not ok for what no operation says.
func operationOf(clauses []model.Clause) (_ []*security.Rule_To, ok bool) {
	if len(clauses) == 0 {
		return nil, true
	}
	o := &security.Operation{}
	for _, c := range clauses {
		fields, known := map[string][2]*[]string{
			model.RoleHosts: {&o.Hosts, &o.NotHosts}, model.RoleMethods: {&o.Methods, &o.NotMethods},
			model.RolePaths: {&o.Paths, &o.NotPaths}, condition.Port: {&o.Ports, &o.NotPorts},
		}[c.Key]
		if !known {
			return nil, false
		}
		side := fields[0]
		if c.Not {
			side = fields[1]
		}
		*side = c.Values
	}
	return []*security.Rule_To{{Operation: o}}, true
}

// holdsOf says whether the workload is one that the constraints mean, behind a
// service of that short name.
func holdsOf(where []model.Clause, p *model.Proxy, service string) bool {
	return !slices.ContainsFunc(where, func(c model.Clause) bool {
		value, there := "", true
		switch name, label, _ := strings.Cut(c.Key, "["); name {
		case model.DestinationLabels:
			value, there = p.Labels[strings.TrimSuffix(label, "]")]
		case model.DestinationNamespace:
			value = p.Namespace
		case model.DestinationName:
			value, there = service, service != ""
		case model.DestinationUser:
			value = p.ServiceAccount
		}
		return !there || !oneMatches(c.Values, value)
	})
}

// oneMatches knows the four forms; "*" takes the empty text too.
func oneMatches(patterns []string, s string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return pattern == "*" || match(pattern, s) })
}
