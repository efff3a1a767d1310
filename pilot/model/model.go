package model

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	meshv1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/writ-mesh/writ/internal/regoform"
)

// Ref names an object and the place where it was written.
type Ref struct {
	Kind      string
	Namespace string
	Name      string
	// File is relative to the mesh directory; Line is 1-based. Both are empty
	// for objects that were made up from others.
	File string
	Line int
}

// String gives "<kind> <namespace>/<name> (<file>:<line>)".
func (r Ref) String() string {
	s := r.ID()
	if r.File != "" {
		s += fmt.Sprintf(" (%s:%d)", r.File, r.Line)
	}
	return s
}

// ID gives "<kind> <namespace>/<name>", the form in which refusals name a rule, or
// "<kind> <name>" of what has no namespace.
func (r Ref) ID() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// Meta is what every object carries.
type Meta struct {
	Ref
	Labels      map[string]string
	Annotations map[string]string
	// RuleLines are the lines of File in which the rules of an AuthorizationPolicy
	// begin, 0 where that is not known.
	RuleLines []int
	// Created is metadata.creationTimestamp, the zero time if not given. Where
	// Istio lets the oldest object win, so does Writ, then the smaller name.
	Created time.Time
}

// Object is an object of a kind whose specification is a message of istio.io/api.
type Object[Spec any] struct {
	Meta
	Spec *Spec
}

// The kinds that are kept as their published types.
//
//nolint:revive // one comment for the group
type (
	VirtualService        = Object[networking.VirtualService]
	DestinationRule       = Object[networking.DestinationRule]
	Gateway               = Object[networking.Gateway]
	Sidecar               = Object[networking.Sidecar]
	PeerAuthentication    = Object[security.PeerAuthentication]
	RequestAuthentication = Object[security.RequestAuthentication]
	AuthorizationPolicy   = Object[security.AuthorizationPolicy]
	Telemetry             = Object[telemetry.Telemetry]
	EnvoyFilter           = Object[networking.EnvoyFilter]
)

// Mesh is one revision of the whole configuration.
type Mesh struct {
	// Config is MeshConfig with Istio's defaults filled in.
	Config *meshv1.MeshConfig
	// TrustDomain is without scheme, for example "cluster.local".
	TrustDomain string
	// TrustDomainAliases are accepted wherever TrustDomain is.
	TrustDomainAliases []string
	// FederatedDomains are other trust domains whose identities are accepted as what
	// they are, sorted.
	FederatedDomains []string
	// RootNamespace is where policies apply to the whole mesh.
	RootNamespace string
	// DomainSuffix completes host names: <service>.<namespace>.svc.<suffix>.
	DomainSuffix string
	// Dir is the absolute path of the mesh directory, for files that objects name.
	Dir string

	// NamespaceLabels has an entry for every namespace that an object lives in.
	NamespaceLabels map[string]map[string]string

	// Proxies are the Envoys that pilot configures, sorted by ID.
	Proxies []*Proxy
	// Services are sorted by Hostname; of several with one Hostname the first is
	// for whoever has none of them in his own namespace.
	Services []*Service
	// Aliases has the hostname of a service by the further names that it has.
	Aliases map[string]string
	// Secrets are TLS secrets by "<namespace>/<name>", for Gateway credentialName.
	Secrets map[string]*Secret

	// All lists below are sorted by creation time, then namespace, then name:
	// the order in which Istio lets the first one win.
	VirtualServices        []*VirtualService
	DestinationRules       []*DestinationRule
	Gateways               []*Gateway
	Sidecars               []*Sidecar
	PeerAuthentications    []*PeerAuthentication
	RequestAuthentications []*RequestAuthentication
	AuthorizationPolicies  []*AuthorizationPolicy
	Telemetries            []*Telemetry
	EnvoyFilters           []*EnvoyFilter
	RegoPolicies           []*RegoPolicy
	QuotaPolicies          []*QuotaPolicy
	ServiceRoles           []*ServiceRole
	ServiceRoleBindings    []*ServiceRoleBinding
	AccessLists            []*AccessList

	// RbacConfig says where ServiceRoles are enforced, nil for nowhere.
	RbacConfig *RbacConfig

	// Deciders are where proxies reach the services of Writ.
	Deciders Deciders
	// Revoked is what the authority has revoked, and Tokens which JSON Web Tokens are.
	// They are not of the files.
	Revoked Revoked
	Tokens  RevokedTokens
	// Fetched are the entries of AccessLists from elsewhere, by "<namespace>/<name>"; a
	// list is missing before the first. They are not of the files.
	Fetched map[string]Fetched
	// KeySets are the key sets of token issuers that pilot has, by KeyPlace.Key, in
	// JSON. They are not of the files.
	KeySets map[string]string
}

// Deciders are the addresses of the services that Envoys call while deciding.
// Each is "unix:///path" (no TLS, guarded by file mode) or "host:port" (mTLS;
// the server's identity is spiffe://<td>/writ/authz or .../writ/ratelimit).
// Empty means that the mesh runs without it.
type Deciders struct {
	Authz     string
	RateLimit string
}

// ProxyType tells sidecars from gateways.
type ProxyType int

// The types of proxies.
const (
	SidecarProxy ProxyType = iota
	GatewayProxy
)

// Interception is how traffic gets into a sidecar.
type Interception int

const (
	// Explicit means that the sidecar binds the workload's ports on the workload's own
	// address and offers an HTTP proxy on ExplicitProxyPort; nothing is redirected.
	Explicit Interception = iota
	// Redirect means that iptables send inbound traffic to InboundPort and outbound
	// traffic to OutboundPort, as in an Istio pod.
	Redirect
)

// The ports of a sidecar; Istio's where Istio has one.
const (
	AdminPort         = 15000
	OutboundPort      = 15001
	InboundPort       = 15006
	ExplicitProxyPort = 15007
	ReadinessPort     = 15021
	PrometheusPort    = 15090
)

// Proxy is one Envoy: the sidecar of one workload replica, or a gateway.
type Proxy struct {
	// ID is the xDS node id in Istio's form: <type>~<IP>~<name>.<namespace>~<domain>.
	ID   string
	Type ProxyType
	// Name is that of the replica, for example reviews-v2-1. For a gateway that
	// is run for a Gateway object it is the object's name.
	Name           string
	Namespace      string
	ServiceAccount string
	Labels         map[string]string
	// Node is the node whose agent serves this proxy.
	Node string
	// UID is the user that the proxy runs as, by which the node agent recognizes
	// it; nil if it is recognized otherwise.
	UID          *uint32
	Address      netip.Addr
	Interception Interception
	// Ports are what the workload listens on; empty for gateways.
	Ports []WorkloadPort
	// Gateway is the Gateway object that a gateway is run for, "<namespace>/<name>".
	// Where it is not known the gateway has the name of its object, if it has one.
	Gateway string
	// GatewayPorts maps the port of a Gateway server to the port really bound,
	// where the two differ (a privileged port without the right to bind it).
	GatewayPorts map[uint32]uint32
}

// Serves picks of the mesh's Gateways those that a gateway proxy serves: the one
// that it is run for and no other; one of its name, of the root namespace if there
// is one; else all that select it.
func (p *Proxy) Serves(gateways []*Gateway, rootNamespace string) []*Gateway {
	var selecting []*Gateway
	for _, g := range RootFirst(gateways, rootNamespace) {
		switch {
		case !SelectorMatches(g.Spec.GetSelector(), p.Labels):
		case p.Gateway == "":
			selecting = append(selecting, g)
		case p.Gateway == g.Namespace+"/"+g.Name:
			return []*Gateway{g}
		}
	}
	for _, g := range selecting {
		if g.Name == p.Name {
			return []*Gateway{g}
		}
	}
	return selecting
}

// RootFirst gives the Gateways of the root namespace, then the others: of two with
// one name the mesh's own goes first.
func RootFirst(gateways []*Gateway, rootNamespace string) []*Gateway {
	out := slices.Clone(gateways)
	slices.SortStableFunc(out, func(a, b *Gateway) int {
		return boolOrder(a.Namespace != rootNamespace) - boolOrder(b.Namespace != rootNamespace)
	})
	return out
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

// WorkloadPort is a port of a workload.
type WorkloadPort struct {
	Name     string
	Protocol Protocol
	// Port is the one that callers use at the workload's address.
	Port uint32
	// App is where the program really listens: with explicit interception the
	// private port on AppAddress; otherwise the same as Port.
	App uint32
	// AppAddress is the address that the program listens on, 127.0.0.1 unless said otherwise.
	AppAddress netip.Addr
	// AppSocket is the path of the program's unix socket, in place of both, if it has one.
	AppSocket string
}

// Protocol is the application protocol of a port.
type Protocol int

// The protocols, selected by a port's name (<protocol> or <protocol>-<suffix>)
// or its appProtocol. What has no known prefix is TCP; UDP is not proxied.
const (
	TCP Protocol = iota
	HTTP
	HTTP2
	GRPC
	GRPCWeb
	HTTPS
	TLS
	Mongo
	Redis
	MySQL
	UDP
)

// IsHTTP says whether requests are seen (and not only connections).
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 || p == GRPC || p == GRPCWeb }

// IsHTTP2 says whether the program behind speaks HTTP/2 in plain text.
func (p Protocol) IsHTTP2() bool { return p == HTTP2 || p == GRPC }

// Resolution is how the endpoints of a service are found.
type Resolution int

// The resolutions, as ServiceEntry has them. DNSRoundRobin connects to one
// answer at a time.
const (
	Static Resolution = iota
	DNS
	DNSRoundRobin
	None
)

// Service is something that can be called by a host name.
type Service struct {
	// Meta is that of the Service or ServiceEntry, or of the first LocalWorkload
	// for a service that follows from workloads alone.
	Meta
	// Hostname is fully qualified: reviews.default.svc.cluster.local, or what a
	// ServiceEntry says (possibly a wildcard such as *.example.com).
	Hostname string
	// Aliases are further names, those of Services of type ExternalName that lead to
	// it, sorted.
	Aliases []string
	// Addresses are virtual IPs or CIDRs, possibly none.
	Addresses  []string
	Ports      []ServicePort
	Resolution Resolution
	// External is set for ServiceEntries with location MESH_EXTERNAL: no mesh
	// mTLS, and endpoints have no identity of the mesh.
	External bool
	// ExportTo as in Istio: empty or "*" is everywhere, "." the own namespace.
	ExportTo []string
	// SubjectAltNames from a ServiceEntry.
	SubjectAltNames []string
	// Near are the labels in which endpoints should be like the client, the first one
	// counting most; nil if the service has no preference.
	Near []string
	// Selector are the labels of the workloads of Namespace behind it, nil if it is
	// not labels that say so. Workload is the name of what is run behind a service
	// that follows from workloads without a label app.
	Selector map[string]string
	Workload string
	// Members are the IDs of the workloads that EndpointSlices name, ready or not, sorted.
	Members   []string
	Endpoints []*Endpoint
}

// ServicePort is a port of a service.
type ServicePort struct {
	Name     string
	Protocol Protocol
	Port     uint32
}

// Endpoint is one address behind a service.
type Endpoint struct {
	// Address is an IP, or a host name with DNS resolution, or unix:///path.
	Address string
	// Ports maps the service's port number to the port at Address.
	Ports          map[uint32]uint32
	Labels         map[string]string
	Namespace      string
	ServiceAccount string
	Weight         uint32
	Locality       string
	// Proxy is the sidecar in front of this endpoint, nil if there is none.
	Proxy *Proxy
}

// RegoPolicy is our kind of that name.
type RegoPolicy struct {
	Meta
	// Selector is empty for every workload of the namespace (of the mesh in the root namespace).
	Selector map[string]string
	// Module is the Rego text, empty when BundleURL is set.
	Module        string
	Query         string
	BundleURL     string
	BundleRefresh time.Duration
	// BundleSigning is who has to have signed the bundle, empty for nobody.
	BundleSigning BundleSigning
	// BundleCredentials is what the server of the bundle is shown.
	BundleCredentials BundleCredentials
	// FailOpen is whenUnavailable: Allow.
	FailOpen bool
	Observe  bool
	// Fingerprint is ContentHash, by which proxies name the content to authz. Without one
	// they name whatever authz has.
	Fingerprint string
	// Form is what is known of the policy without evaluating it; nil if nobody looked.
	Form *regoform.Policy
	// ModuleFile and ModuleLine tell where the module stands: its line n is that line
	// plus n. ModuleLine is negative where a line of the module has none of its own.
	ModuleFile string
	ModuleLine int
}

// BundleCredentials are names of files on the machine of authz, below its folder for the
// bundle's host, and scopes of OAuth2.
type BundleCredentials struct {
	TokenFile, CertificateFile, KeyFile, ClientFile, CAFile string
	Scopes                                                  []string
}

// BundleSigning is a PEM public key, its algorithm, and the scope that a signature
// has to have.
type BundleSigning struct{ Key, Algorithm, Scope string }

// QuotaPolicy is our kind of that name.
type QuotaPolicy struct {
	Meta
	Selector map[string]string
	Limits   []QuotaLimit
	// Match is which requests the policy speaks of, those that one of them fits; none is all.
	Match []QuotaMatch
	// Upper is what becomes of the limits of upper layers for these requests:
	// QuotaInherit, QuotaOverride or QuotaExempt.
	Upper string
	// Lower is the most that policies of other namespaces may do so to this one, which is
	// of the root namespace then.
	Lower string
	// FailClosed is whenUnavailable: Deny, FailLocal is Local; neither is Allow.
	FailClosed, FailLocal bool
	Observe               bool
	// Fingerprint is ContentHash, by which proxies name the content to ratelimit. Without
	// one they mean whatever content it has.
	Fingerprint string
}

// What a QuotaPolicy does with the limits of upper layers: all count as well, those of
// the same key are replaced by its own, or none counts.
const (
	QuotaInherit  = ""
	QuotaOverride = "override"
	QuotaExempt   = "exempt"
)

// QuotaMatch fits a request that has one value of each list, as AuthorizationPolicies
// compare them, hosts with any port and in any case; an empty list fits all.
type QuotaMatch struct {
	Principals, Namespaces, Hosts, Methods, Paths []string
	// Claims are of the verified token; each has to fit.
	Claims []QuotaClaim
}

// QuotaClaim fits a token whose claim is one of Values, or a list that has one of them.
type QuotaClaim struct {
	// Name is the part in brackets of request.auth.claims[NAME]; nested claims as
	// [a][b] give "a][b".
	Name   string
	Values []string
}

// QuotaLimit allows Requests per Every for each combination of the values of Per, or
// with the algorithm of what is under way so many at once, each for Every at most.
type QuotaLimit struct {
	// Name is what the limit is known by to other policies, see Key; it may be empty.
	Name     string
	Per      []Dimension
	Requests uint32
	Every    time.Duration
	// Algorithm is "" (sliding), configpb.QuotaGCRA or configpb.QuotaConcurrency.
	Algorithm string
	// Burst is how many pass at once with QuotaGCRA; 0 is one.
	Burst uint32
	// Mode is where it is counted: "" (exactly, in the shared store),
	// configpb.QuotaLeased, QuotaLocal or QuotaAssigned.
	Mode string
	// Cost is nil if each request takes one.
	Cost *QuotaCost
	// Plan is nil if all callers have the same numbers.
	Plan *QuotaPlan
	// Fair is nil if each combination of Per has a limit of its own. Else the last of Per
	// is Fair.By.
	Fair *QuotaFair
}

// QuotaFair says between whom a limit is shared fairly.
type QuotaFair struct {
	// By is the dimension by which they are told apart.
	By string
	// Weights by the values of By.
	Weights map[string]uint32
	// Plan says where the weights of other values are; nil, and of values that the table
	// does not tell of, is 1.
	Plan *QuotaPlan
}

// QuotaPlan names a table of ratelimit's that maps callers to their numbers; those of
// the limit are for callers that it does not tell of.
type QuotaPlan struct {
	Table string
	// By is the dimension, one of the limit's, whose value is the caller.
	By string
	// Numbers is the column of the table; "" if it has only one.
	Numbers string
}

// QuotaCost is what a request takes from a limit, known only when it is over.
type QuotaCost struct {
	// From is CostRequestBytes, CostResponseBytes or CostResponseHeader.
	From string
	// Header is the name of CostResponseHeader, in lower case.
	Header string
	// Reserve is held while the request runs, for Expire at most. 0 holds nothing: the
	// request passes if anything is left.
	Reserve uint32
	Expire  time.Duration
}

// Where the cost of a request is taken from: the bytes of its body, those of the
// answer's, or a header of the answer.
const (
	CostRequestBytes   = "request.bytes"
	CostResponseBytes  = "response.bytes"
	CostResponseHeader = "response.headers"
)

// Dimension is one entry of a quota limit's per: source.principal,
// source.namespace, source.ip, request.method, request.path, request.path[TEMPLATE],
// request.headers[NAME], request.auth.claims[NAME], destination.service, or a
// constant.
type Dimension struct {
	// Text is as written, and the key of the descriptor entry.
	Text string
	// Kind is Text without the part in brackets; "constant" for a constant.
	Kind string
	// Arg is the part in brackets: a header or claim name (nested claims as
	// [a][b] give "a][b"), the template of a path, or the constant's text.
	Arg string
}

// Secret is a TLS secret.
type Secret struct {
	Meta
	// Cert, Key, CA and CRL are PEM. CRL has what CA has revoked.
	Cert, Key, CA, CRL []byte
}
