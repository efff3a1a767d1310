package meshdir

import (
	"regexp"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoyfilter/patchvalue"
)

// maxProxyVersion bounds the expression of a proxyVersion, in bytes, as Istio does.
const maxProxyVersion = 1024

const (
	// ownFilter and ownCluster are how names of Writ's own begin.
	ownFilter  = "writ."
	ownCluster = "writ-"
)

// What patches are about, by what has to match.
var (
	ofListeners = []networking.EnvoyFilter_ApplyTo{
		networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_LISTENER_FILTER, networking.EnvoyFilter_FILTER_CHAIN,
		networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_HTTP_FILTER,
	}
	ofRoutes = []networking.EnvoyFilter_ApplyTo{networking.EnvoyFilter_ROUTE_CONFIGURATION, networking.EnvoyFilter_VIRTUAL_HOST, networking.EnvoyFilter_HTTP_ROUTE}
)

// checkEnvoyFilter follows the rules of Istio's validation of the kind.
func checkEnvoyFilter(c *checker) {
	f := c.object.spec.(*networking.EnvoyFilter)
	c.warnf("spec", "it changes what pilot generates, which any version may do otherwise, and policies may not hold behind it: use another kind if there is one")
	c.workloadSelector("spec.workloadSelector", "labels", f.WorkloadSelector != nil, f.WorkloadSelector.GetLabels())
	if len(f.TargetRefs) > 0 {
		c.errorf("spec.targetRefs", "is for waypoints and the Kubernetes Gateway API, which this version does not have: use workloadSelector")
	}
	for i, p := range f.ConfigPatches {
		c.configPatch(index("spec.configPatches", i), p)
	}
}

func (c *checker) configPatch(at string, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	op := p.GetPatch().GetOperation()
	switch {
	case p.GetMatch().GetContext() == networking.EnvoyFilter_WAYPOINT:
		c.warnf(at+".match.context", "there are no waypoints here: it has no effect")
		return
	case p.ApplyTo == networking.EnvoyFilter_INVALID:
		c.errorf(at+".applyTo", "is missing: say what to change, for example HTTP_FILTER")
		return
	case p.Patch == nil:
		c.errorf(at+".patch", "a patch is missing")
		return
	case op == networking.EnvoyFilter_Patch_INVALID:
		c.errorf(at+".patch.operation", "is missing: for example MERGE, ADD or INSERT_BEFORE")
		return
	case op != networking.EnvoyFilter_Patch_REMOVE && p.Patch.Value == nil:
		c.errorf(at+".patch.value", "a value is missing: only REMOVE needs none")
		return
	case p.ApplyTo == networking.EnvoyFilter_BOOTSTRAP:
		c.warnf(at+".applyTo", "what an Envoy starts with is written before pilot is asked: it has no effect")
		return
	}
	c.patchedProxies(at+".match.proxy", p.GetMatch().GetProxy())
	if c.patchedObject(at+".match", p) && p.Patch.Value != nil {
		c.patchValue(at+".patch.value", p)
	}
}

func (c *checker) patchedProxies(at string, m *networking.EnvoyFilter_ProxyMatch) {
	if v := m.GetProxyVersion(); v != "" {
		if _, err := regexp.Compile(v); len(v) <= maxProxyVersion && err != nil {
			c.errorf(at+".proxyVersion", "%q is not a regular expression: %v", shorten(v), err)
		} else {
			c.warnf(at+".proxyVersion", "proxies here have no version of Istio: the patch has no effect; leave proxyVersion out")
		}
	}
	if len(m.GetMetadata()) > 0 {
		c.warnf(at+".metadata", "proxies here have no metadata of Istio: the patch has no effect; use workloadSelector")
	}
}

// patchedObject checks that what a patch matches is of what it applies to.
func (c *checker) patchedObject(at string, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) bool {
	m := p.GetMatch()
	var wrong string
	switch {
	case m.GetObjectTypes() == nil:
	case slices.Contains(ofListeners, p.ApplyTo) && m.GetListener() == nil:
		wrong = "listener"
	case slices.Contains(ofRoutes, p.ApplyTo) && m.GetRouteConfiguration() == nil:
		wrong = "routeConfiguration"
	case p.ApplyTo == networking.EnvoyFilter_CLUSTER && m.GetCluster() == nil:
		wrong = "cluster"
	}
	if wrong != "" {
		c.errorf(at, "%s is matched by %s and nothing else", p.ApplyTo, wrong)
		return false
	}
	if m.GetListener().GetPortNumber() != 0 && m.GetContext() == networking.EnvoyFilter_SIDECAR_OUTBOUND {
		c.warnf(at+".listener.portNumber", "without interception the explicit proxy has one listener for all ports, which this does not match: match virtual hosts instead")
	}
	f := m.GetListener().GetFilterChain().GetFilter()
	if f == nil {
		return true
	}
	at += ".listener.filterChain.filter"
	removes := slices.Contains([]networking.EnvoyFilter_Patch_Operation{
		networking.EnvoyFilter_Patch_REMOVE, networking.EnvoyFilter_Patch_REPLACE, networking.EnvoyFilter_Patch_MERGE, networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST,
	}, p.Patch.Operation)
	switch sub := f.GetSubFilter(); {
	case f.Name == "":
		c.errorf(at+".name", "a name is missing")
	case sub == nil:
		if p.ApplyTo == networking.EnvoyFilter_LISTENER || p.ApplyTo == networking.EnvoyFilter_FILTER_CHAIN {
			c.warnf(at, "has no effect on %s", p.ApplyTo)
		}
		if removes && strings.HasPrefix(f.Name, ownFilter) && p.ApplyTo == networking.EnvoyFilter_NETWORK_FILTER {
			c.errorf(at+".name", "policies are decided by %s: it cannot be changed", f.Name)
		}
	case p.ApplyTo != networking.EnvoyFilter_HTTP_FILTER:
		c.errorf(at+".subFilter", "is for applyTo HTTP_FILTER only")
	case f.Name != "envoy.filters.network.http_connection_manager" && f.Name != "envoy.http_connection_manager":
		c.errorf(at+".subFilter", "is one of envoy.filters.network.http_connection_manager only")
	case sub.Name == "":
		c.errorf(at+".subFilter.name", "a name is missing")
	case removes && strings.HasPrefix(sub.Name, ownFilter):
		c.errorf(at+".subFilter.name", "policies are decided by %s: it cannot be changed", sub.Name)
	}
	for _, name := range []string{f.Name, f.GetSubFilter().GetName()} {
		if rest, old := strings.CutPrefix(name, "envoy."); old && !strings.Contains(rest, ".") {
			c.warnf(at, "%s is a name of long ago, by which nothing is found: they begin with envoy.filters", name)
		}
	}
	return true
}

func (c *checker) patchValue(at string, p *networking.EnvoyFilter_EnvoyConfigObjectPatch) {
	m, odd, err := patchvalue.Of(p.ApplyTo, p.Patch.Value)
	switch {
	case err != nil:
		c.errorf(at, "does not fit %s: %v", p.ApplyTo, err)
		return
	case odd != nil:
		c.warnf(at, "%v: it is left out", odd)
	}
	if l, ok := m.(*listenerv3.Listener); ok {
		c.patchedSocket(at+".address", l.GetAddress())
		own := proto.CloneOf(l)
		own.Address = nil
		m = own
	}
	c.reaches(at, m.ProtoReflect(), maxPatchDepth)
	named, ok := m.(interface{ GetName() string })
	if !ok {
		return
	}
	adds := slices.Contains([]networking.EnvoyFilter_ApplyTo{networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_CLUSTER, networking.EnvoyFilter_EXTENSION_CONFIG}, p.ApplyTo) && !merging(p)
	switch name := named.GetName(); {
	case adds && name == "":
		c.errorf(at+".name", "a name is missing")
	case strings.HasPrefix(name, ownFilter) || strings.HasPrefix(name, ownCluster):
		c.errorf(at+".name", "%q is reserved: names of Writ's own begin so", shorten(name))
	}
}

// patchedSocket keeps a listener off the ports of the proxy itself.
func (c *checker) patchedSocket(at string, a *corev3.Address) {
	if n := a.GetSocketAddress().GetPortValue(); slices.Contains(proxyPorts, n) {
		c.errorf(at, "port %d is reserved: it is the proxy's own", n)
	}
	if p := a.GetPipe().GetPath(); p != "" {
		if problem := c.options.socketProblem(p); problem != "" {
			c.errorf(at, "%q %s", shorten(p), problem)
		}
	}
}

// maxPatchDepth bounds how deep configurations are looked for in each other.
const maxPatchDepth = 64

// reserved are names of clusters and secrets that every Envoy of the mesh has for itself:
// whoever is passed on to one of them speaks with the rights of the proxy.
var reserved = regexp.MustCompile(`writ-(agent|admin|authz|ratelimit|proxy-secret)`)

// reaches refuses values that lead to the proxy's own and the mesh's sockets.
func (c *checker) reaches(at string, m protoreflect.Message, depth int) {
	if depth == 0 {
		c.errorf(at, "is nested too deeply")
		return
	}
	switch v := m.Interface().(type) {
	case *anypb.Any:
		if inner, err := v.UnmarshalNew(); err == nil {
			c.reaches(at, inner.ProtoReflect(), depth-1)
		}
		return
	case *corev3.Pipe:
		if problem := c.options.socketProblem(v.GetPath()); problem != "" {
			c.errorf(at, "%q %s", shorten(v.GetPath()), problem)
		}
	case *corev3.SocketAddress:
		if problem := c.options.addressProblem(v.GetAddress(), v.GetPortValue()); problem != "" {
			c.errorf(at, "%s:%d %s", shorten(v.GetAddress()), v.GetPortValue(), problem)
		}
	}
	look := func(fd protoreflect.FieldDescriptor, v protoreflect.Value) {
		switch {
		case fd.Message() != nil:
			c.reaches(at, v.Message(), depth-1)
		case fd.Kind() == protoreflect.StringKind:
			if name := reserved.FindString(v.String()); name != "" {
				c.errorf(at, "%s is reserved: it is the mesh's own", name)
			}
		}
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList():
			for i := range v.List().Len() {
				look(fd, v.List().Get(i))
			}
		case fd.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				look(fd.MapValue(), v)
				return true
			})
		default:
			look(fd, v)
		}
		return true
	})
}

func merging(p *networking.EnvoyFilter_EnvoyConfigObjectPatch) bool {
	op := p.GetPatch().GetOperation()
	return op == networking.EnvoyFilter_Patch_MERGE || op == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST
}
