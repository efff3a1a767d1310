package meshdir

import (
	"maps"
	"slices"
	"strings"

	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/pilot/condition"
	"github.com/writ-mesh/writ/pilot/model"
)

// rbac takes up ServiceRoles, their bindings and what says where they count. There
// is one such object in a mesh; as in Istio a ClusterRbacConfig goes before an
// RbacConfig.
func (a *assembler) rbac() {
	for _, o := range a.objects["ServiceRole"] {
		a.mesh.ServiceRoles = append(a.mesh.ServiceRoles, serviceRoleOf(o))
	}
	for _, o := range a.objects["ServiceRoleBinding"] {
		a.mesh.ServiceRoleBindings = append(a.mesh.ServiceRoleBindings, serviceRoleBindingOf(o))
	}
	for _, o := range slices.Concat(a.objects["ClusterRbacConfig"], a.objects["RbacConfig"]) {
		first := a.mesh.RbacConfig
		switch {
		case first == nil:
			a.mesh.RbacConfig = rbacConfigOf(o)
		case first.Kind == o.meta.Kind:
			a.report(o, func(c *checker) { c.errorf("metadata.name", "there is one in the mesh already: %s", first.Ref) })
		default:
			a.report(o, func(c *checker) { c.warnf("metadata.name", "is not used: %s goes first", first.Ref) })
		}
	}
}

// rolesCount says whether roles of a namespace are enforced anywhere in it.
func (a *assembler) rolesCount(namespace string) bool {
	config := a.mesh.RbacConfig
	return config.On(namespace, "") || slices.ContainsFunc(a.mesh.Services, func(s *model.Service) bool {
		return s.Namespace == namespace && config.On(namespace, s.Hostname)
	})
}

func (a *assembler) checkRole(c *checker) {
	namespace, s := c.object.meta.Namespace, c.object.spec.(*serviceRoleSpec)
	switch config := a.mesh.RbacConfig; {
	case config == nil:
		c.warnf("kind", "there is no ClusterRbacConfig, so no role is looked at and everything passes: write one")
	case !a.rolesCount(namespace):
		c.warnf("kind", "%s is not on for namespace %s, so the role is not looked at", config.Ref, namespace)
	case !slices.ContainsFunc(a.mesh.ServiceRoleBindings, func(b *model.ServiceRoleBinding) bool {
		return b.Namespace == namespace && b.Role == c.object.meta.Name
	}):
		c.warnf("metadata.name", "no ServiceRoleBinding of namespace %s names this role, so nobody has it", namespace)
	}
	for i, rule := range s.Rules {
		for j, pattern := range rule.Services {
			a.serviceExists(c, index(index("spec.rules", i)+".services", j), pattern, namespace)
		}
	}
}

// serviceExists warns of a pattern that no service of the namespace has.
func (a *assembler) serviceExists(c *checker, at, pattern, namespace string) {
	var own []string
	foreign := ""
	for _, s := range a.mesh.Services {
		if s.Namespace == namespace {
			own = append(own, s.Hostname)
		} else if s.Hostname == pattern {
			foreign = s.Namespace
		}
	}
	head, tail, wildcard := strings.Cut(pattern, "*")
	if len(own) == 0 || slices.ContainsFunc(own, func(h string) bool {
		return h == pattern || wildcard && strings.HasPrefix(h, head) && strings.HasSuffix(h, tail)
	}) {
		return
	}
	switch {
	case foreign != "":
		c.warnf(at, "%s is of namespace %s, and a role is for services of its own: write it there", shorten(pattern), foreign)
	case wildcard:
		c.warnf(at, "no service of namespace %s is like %q", namespace, shorten(pattern))
	default:
		c.warnf(at, "there is no service %s in namespace %s%s", shorten(pattern), namespace, a.suggestHost(pattern, pattern, namespace))
	}
}

func (a *assembler) checkBinding(c *checker) {
	s := c.object.spec.(*serviceRoleBindingSpec)
	namespace := c.object.meta.Namespace
	if s.RoleRef == nil || a.byID["ServiceRole "+namespace+"/"+s.RoleRef.Name] != nil {
		return
	}
	var known []string
	elsewhere := ""
	for _, o := range a.objects["ServiceRole"] {
		if o.meta.Namespace == namespace {
			known = append(known, o.meta.Name)
		} else if o.meta.Name == s.RoleRef.Name {
			elsewhere = o.meta.Namespace
		}
	}
	hint := didYouMean(s.RoleRef.Name, known)
	if elsewhere != "" && !strings.Contains(hint, "?") {
		hint = ": a binding is for roles of its own namespace, and that is one of " + elsewhere
	}
	c.warnf("spec.roleRef.name", "there is no ServiceRole %s/%s, so this grants nothing%s", namespace, shorten(s.RoleRef.Name), hint)
}

// checkRbacTargets warns of services and namespaces that are not there.
func (a *assembler) checkRbacTargets(c *checker) {
	s := c.object.spec.(*rbacConfigSpec)
	for _, t := range []struct {
		name, mode string
		target     *rbacTarget
	}{{"inclusion", "ON_WITH_INCLUSION", s.Inclusion}, {"exclusion", "ON_WITH_EXCLUSION", s.Exclusion}} {
		if t.target == nil {
			continue
		}
		at := "spec." + t.name
		if s.Mode != t.mode {
			c.warnf(at, "has no effect: the mode is %s", orOff(s.Mode))
			continue
		}
		for i, host := range t.target.Services {
			if len(a.mesh.Services) > 0 && !slices.ContainsFunc(a.mesh.Services, func(s *model.Service) bool { return s.Hostname == host }) {
				var all []string
				for _, s := range a.mesh.Services {
					all = append(all, s.Hostname)
				}
				c.warnf(index(at+".services", i), "there is no service %s%s", shorten(host), nearestOf(host, all))
			}
		}
		for i, namespace := range t.target.Namespaces {
			if _, ok := a.mesh.NamespaceLabels[namespace]; !ok {
				c.warnf(index(at+".namespaces", i), "nothing is in namespace %s%s", shorten(namespace), nearestOf(namespace, slices.Collect(maps.Keys(a.mesh.NamespaceLabels))))
			}
		}
	}
	if c.object.meta.Ref == a.mesh.RbacConfig.Ref {
		a.replacedRoles()
	}
}

func orOff(mode string) string {
	if mode == "" {
		return "OFF"
	}
	return mode
}

func nearestOf(word string, candidates []string) string {
	slices.Sort(candidates)
	if near := nearest(word, candidates); near != "" {
		return `, did you mean "` + near + `"?`
	}
	return ""
}

// replacedRoles warns of AuthorizationPolicies that put roles out of force: as in
// Istio 1.4 and 1.5, workloads that an enforced ALLOW or DENY policy selects go by
// these alone. A DENY policy so opens what the roles had closed.
func (a *assembler) replacedRoles() {
	for _, o := range a.objects["AuthorizationPolicy"] {
		spec := o.spec.(*security.AuthorizationPolicy)
		pol := &model.AuthorizationPolicy{Meta: o.meta, Spec: spec}
		if model.DryRun(pol) || spec.Action != security.AuthorizationPolicy_ALLOW && spec.Action != security.AuthorizationPolicy_DENY {
			continue
		}
		counts := a.rolesCount(o.meta.Namespace)
		if o.meta.Namespace == a.mesh.RootNamespace {
			counts = slices.ContainsFunc(slices.Collect(maps.Keys(a.mesh.NamespaceLabels)), a.rolesCount)
		}
		if counts {
			a.report(o, func(c *checker) {
				c.warnf("kind", "workloads that this selects go by AuthorizationPolicies alone: the ServiceRoles of %s are not looked at for them", a.mesh.RbacConfig.Ref)
			})
		}
	}
}

// subjectsOfNobody warns of identities that nothing has.
func (a *assembler) subjectsOfNobody(c *checker) {
	for i := range c.object.spec.(*serviceRoleBindingSpec).Subjects {
		s := &c.object.spec.(*serviceRoleBindingSpec).Subjects[i]
		at := index("spec.subjects", i)
		a.principal(c, at+".user", s.User)
		for j, name := range s.Names {
			a.principal(c, index(at+".names", j), name)
		}
		a.principal(c, at+".properties["+condition.Principal+"]", s.Properties[condition.Principal])
		namespace := s.Properties[condition.Namespace]
		if _, ok := a.inventory.accounts[namespace]; namespace != "" && !ok && !strings.Contains(namespace, "*") {
			c.warnf(at+".properties["+condition.Namespace+"]", "nothing runs in namespace %s%s", shorten(namespace), orElse(nearest(namespace, slices.Sorted(maps.Keys(a.inventory.accounts)))))
		}
	}
}

func (a *assembler) principal(c *checker, at, value string) {
	rest, scheme := strings.CutPrefix(value, spiffePrefix)
	switch {
	case value == "" || value == allUsers || value == allAuthenticatedUsers || strings.Contains(value, "*"):
	case scheme:
		c.warnf(at, "a principal has no scheme, so this matches nobody: write %q", whole(rest))
	default:
		a.unknownPrincipal(c, at, value)
	}
}
