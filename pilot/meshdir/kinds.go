package meshdir

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// kindInfo is what is known of a kind.
type kindInfo struct {
	// versions are the accepted values of apiVersion, the preferred one first.
	versions []string
	// message makes an empty specification of a kind of istio.io/api.
	message func() proto.Message
	// value makes an empty object or specification with json tags; whole says
	// that it is the object itself, with its fields beside metadata.
	value func() any
	whole bool
	// validate checks one object by itself.
	validate func(*checker)
	// cluster says that the kind has no namespace.
	cluster bool
}

func versions(group string, names ...string) []string {
	for i := range names {
		names[i] = group + "/" + names[i]
	}
	return names
}

// knownKinds lists what can be read. It is built anew for each parser, so that
// the package has no state.
func knownKinds() map[string]kindInfo {
	network := func() []string { return versions("networking.istio.io", "v1", "v1beta1", "v1alpha3") }
	secure := func() []string { return versions("security.istio.io", "v1", "v1beta1") }
	rbac := func() []string { return versions("rbac.istio.io", "v1alpha1") }
	policy := func() []string { return versions("policy.writ.mesh", "v1alpha1") }
	local := func() []string { return versions("local.writ.mesh", "v1alpha1") }
	return map[string]kindInfo{
		"VirtualService":        {versions: network(), message: func() proto.Message { return &networking.VirtualService{} }, validate: checkVirtualService},
		"DestinationRule":       {versions: network(), message: func() proto.Message { return &networking.DestinationRule{} }, validate: checkDestinationRule},
		"Gateway":               {versions: network(), message: func() proto.Message { return &networking.Gateway{} }, validate: checkGateway},
		"ServiceEntry":          {versions: network(), message: func() proto.Message { return &networking.ServiceEntry{} }, validate: checkServiceEntry},
		"WorkloadEntry":         {versions: network(), message: func() proto.Message { return &networking.WorkloadEntry{} }, validate: checkWorkloadEntryObject},
		"WorkloadGroup":         {versions: network(), message: func() proto.Message { return &networking.WorkloadGroup{} }, validate: checkWorkloadGroup},
		"Sidecar":               {versions: network(), message: func() proto.Message { return &networking.Sidecar{} }, validate: checkSidecar},
		"PeerAuthentication":    {versions: secure(), message: func() proto.Message { return &security.PeerAuthentication{} }, validate: checkPeerAuthentication},
		"RequestAuthentication": {versions: secure(), message: func() proto.Message { return &security.RequestAuthentication{} }, validate: checkRequestAuthentication},
		"AuthorizationPolicy":   {versions: secure(), message: func() proto.Message { return &security.AuthorizationPolicy{} }, validate: checkAuthorizationPolicy},
		"Telemetry": {
			versions: versions("telemetry.istio.io", "v1", "v1alpha1"),
			message:  func() proto.Message { return &telemetry.Telemetry{} }, validate: checkTelemetry,
		},
		"EnvoyFilter":    {versions: versions("networking.istio.io", "v1alpha3"), message: func() proto.Message { return &networking.EnvoyFilter{} }, validate: checkEnvoyFilter},
		"Service":        {versions: []string{"v1"}, whole: true, value: func() any { return &corev1.Service{} }, validate: checkService},
		"Secret":         {versions: []string{"v1"}, whole: true, value: func() any { return &corev1.Secret{} }, validate: checkSecret},
		"ServiceAccount": {versions: []string{"v1"}, whole: true, value: func() any { return &corev1.ServiceAccount{} }, validate: nothing},
		"Namespace":      {versions: []string{"v1"}, whole: true, cluster: true, value: func() any { return &corev1.Namespace{} }, validate: nothing},
		"Node":           {versions: []string{"v1"}, whole: true, cluster: true, value: func() any { return &corev1.Node{} }, validate: checkNode},
		"EndpointSlice": {
			versions: versions("discovery.k8s.io", "v1"), whole: true, value: func() any { return &discoveryv1.EndpointSlice{} }, validate: checkEndpointSlice,
		},
		"ServiceRole":        {versions: rbac(), value: func() any { return &serviceRoleSpec{} }, validate: checkServiceRole},
		"ServiceRoleBinding": {versions: rbac(), value: func() any { return &serviceRoleBindingSpec{} }, validate: checkServiceRoleBinding},
		"ClusterRbacConfig":  {versions: rbac(), cluster: true, value: func() any { return &rbacConfigSpec{} }, validate: checkRbacConfig},
		"RbacConfig":         {versions: rbac(), value: func() any { return &rbacConfigSpec{} }, validate: checkRbacConfig},
		"RegoPolicy":         {versions: policy(), value: func() any { return &regoSpec{} }, validate: checkRegoPolicy},
		"QuotaPolicy":        {versions: policy(), value: func() any { return &quotaSpec{} }, validate: checkQuotaPolicy},
		"AccessList":         {versions: policy(), value: func() any { return &accessListSpec{} }, validate: checkAccessList},
		"LocalWorkload":      {versions: local(), value: func() any { return &LocalWorkloadSpec{} }, validate: checkLocalWorkload},
		instanceKind:         {versions: local(), value: func() any { return &InstanceSpec{} }, validate: checkInstance},
	}
}

func nothing(*checker) {}

// laterKinds are part of the contract, or well known, and not read by this
// version; the value is what to do instead, if there is something.
func laterKinds() map[string]string {
	const program = "a program on this machine is a LocalWorkload"
	return map[string]string{
		"Pod":         program,
		"ProxyConfig": "write defaultConfig into mesh.yaml",
		"WasmPlugin":  "", "TrafficExtension": "", "Deployment": program, "StatefulSet": program, "DaemonSet": program,
		"Job": program, "ConfigMap": "write the mesh configuration into mesh.yaml", "Ingress": "write a Gateway and a VirtualService",
		"HTTPRoute": "write a VirtualService", "GRPCRoute": "write a VirtualService", "TCPRoute": "write a VirtualService",
		"TLSRoute": "write a VirtualService", "GatewayClass": "write a Gateway of networking.istio.io", "Endpoints": "write an EndpointSlice",
		"ReplicaSet": program, "CronJob": program, "NetworkPolicy": "write an AuthorizationPolicy", "ReferenceGrant": "write a Gateway of networking.istio.io",
		"Policy": "write a PeerAuthentication and a RequestAuthentication", "MeshPolicy": "write a PeerAuthentication and a RequestAuthentication in the root namespace",
		"QuotaSpec": "write a QuotaPolicy", "QuotaSpecBinding": "write a QuotaPolicy with a selector", "RouteRule": "write a VirtualService", "DestinationPolicy": "write a DestinationRule",
		"MeshConfig": "write its fields bare into mesh.yaml", "IstioOperator": "write its meshConfig bare into mesh.yaml",
	}
}

// identify reads kind and apiVersion and gives what is known of the kind.
func (p *parser) identify(r *report) (string, kindInfo, bool) {
	kindNode, versionNode := get(r.root, "kind"), get(r.root, "apiVersion")
	if kindNode == nil || kindNode.Value == "" {
		hint := "write apiVersion, kind and metadata"
		if near := nearestKey(r, "kind"); near != "" {
			hint = "did you mean \"kind\" where it says \"" + near + "\"?"
		}
		r.at(r.root, "kind", "the document has no kind: %s", hint)
		return "", kindInfo{}, false
	}
	kind := kindNode.Value
	info, ok := p.kinds[kind]
	if !ok || kind == instanceKind && !p.instances {
		r.at(locate(r.root, "kind"), "kind", "%s", p.unknownKind(kind))
		return "", kindInfo{}, false
	}
	switch {
	case versionNode == nil && strings.Contains(info.versions[0], ".writ.mesh/"):
		// Our own kinds have one version and no namesakes elsewhere.
	case versionNode == nil || versionNode.Value == "":
		r.at(r.root, "apiVersion", "the document has no apiVersion: write %s", info.versions[0])
		return "", kindInfo{}, false
	case !slices.Contains(info.versions, versionNode.Value):
		r.at(locate(r.root, "apiVersion"), "apiVersion", "kind %s of %q is not supported: write %s", kind, versionNode.Value, strings.Join(info.versions, " or "))
		return "", kindInfo{}, false
	}
	return kind, info, true
}

func (p *parser) unknownKind(kind string) string {
	if instead, ok := p.later[kind]; ok {
		message := kind + " is not supported by this version"
		if instead != "" {
			message += ": " + instead
		}
		return message
	}
	var names []string
	for name := range p.kinds {
		if name != instanceKind {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return "unknown kind \"" + shorten(kind) + "\"" + didYouMean(kind, names)
}

// nearestKey gives the top-level key that looks like a misspelt want.
func nearestKey(r *report, want string) string {
	for i := 0; i+1 < len(r.root.Content); i += 2 {
		if k := r.root.Content[i].Value; nearest(k, []string{want}) != "" {
			return k
		}
	}
	return ""
}
