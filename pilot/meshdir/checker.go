package meshdir

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/writ-mesh/writ/pilot/model"
)

// checker validates one object by itself: what Istio's validating webhook does.
type checker struct {
	*report
	object  *object
	options *Options
}

var (
	labelForm      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	anyLabelForm   = regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?$`)
	wildcardForm   = regexp.MustCompile(`^(\*|(\*|\*-)?[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)$`)
	qualifiedForm  = regexp.MustCompile(`^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$`)
	headerNameForm = regexp.MustCompile(`^[!#$%&'*+\-.^_|~0-9a-zA-Z\x60]+$`)
	// plainHeaderForm is what Istio takes for a header that a proxy writes claims to.
	plainHeaderForm = regexp.MustCompile(`^[-_0-9a-zA-Z]+$`)
)

// isLabel: a DNS label as Kubernetes wants it (RFC 1123, lower case).
func isLabel(s string) bool { return len(s) <= 63 && labelForm.MatchString(s) }

// isAnyLabel: a DNS label in any case, as Istio wants it for subsets and hosts.
func isAnyLabel(s string) bool { return len(s) <= 63 && anyLabelForm.MatchString(s) }

func isSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !isLabel(part) {
			return false
		}
	}
	return true
}

// labelProblem says what is wrong with a label, "" if nothing is.
func labelProblem(key, value string) string {
	name := key
	if prefix, rest, ok := strings.Cut(key, "/"); ok {
		if len(prefix) > 253 || slices.ContainsFunc(strings.Split(prefix, "."), func(part string) bool { return !isAnyLabel(part) }) {
			return fmt.Sprintf("label key %q has a bad prefix: it must be a DNS name", shorten(key))
		}
		name = rest
	}
	if len(name) > 63 || !qualifiedForm.MatchString(name) {
		return fmt.Sprintf("label key %q is not valid: use letters, digits, '-', '_' and '.', at most 63", shorten(key))
	}
	if value != "" && (len(value) > 63 || !qualifiedForm.MatchString(value)) {
		return fmt.Sprintf("label value %q is not valid: use letters, digits, '-', '_' and '.', at most 63", shorten(value))
	}
	return ""
}

func (c *checker) labels(at string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if problem := labelProblem(k, labels[k]); problem != "" {
			c.errorf(at+"["+k+"]", "%s", problem)
		}
	}
}

// hostProblem says what is wrong with a host name, "" if nothing is. A wildcard
// is allowed in the first label only.
func hostProblem(host string, wildcard bool) string {
	switch {
	case host == "":
		return "a host name is missing"
	case len(host) > 255:
		return "the host name is longer than 255 characters"
	}
	parts := strings.Split(host, ".")
	last := len(parts) - 1
	for i, part := range parts {
		switch {
		case i == 0 && wildcard && len(part) <= 63 && wildcardForm.MatchString(part):
		case i == last && i > 0 && part == "":
		case i == last && (i > 0 || !wildcard) && isNumber(part): // an address, or the end of one
			return fmt.Sprintf("%q is not a valid host name: the last part is a number", shorten(host))
		case !isAnyLabel(part):
			return fmt.Sprintf("%q is not a valid host name: %q cannot be a part of one", shorten(host), shorten(part))
		}
	}
	return ""
}

func isNumber(s string) bool { _, err := strconv.Atoi(s); return err == nil }

func isIP(s string) bool { _, err := netip.ParseAddr(s); return err == nil }

// host checks a host name that may begin with a wildcard.
func (c *checker) host(at, host string) bool {
	if problem := hostProblem(host, true); problem != "" {
		c.errorf(at, "%s", problem)
		return false
	}
	return true
}

func (c *checker) port(at string, port uint32) {
	if port < 1 || port > 65535 {
		c.errorf(at, "port %d is out of range: it must be from 1 to 65535", port)
	}
}

// duration checks what Envoy can express: at least and in steps of a millisecond.
func (c *checker) duration(at string, d *durationpb.Duration) {
	switch v := d.AsDuration(); {
	case d == nil:
	case v < time.Millisecond:
		c.errorf(at, "%s is too short: a duration must be at least 1ms", v)
	case v%time.Millisecond != 0:
		c.errorf(at, "%s is too fine: durations have a precision of 1ms", v)
	}
}

func (c *checker) percent(at string, value float64) {
	if value < 0 || value > 100 {
		c.errorf(at, "%v is not a percentage from 0 to 100", value)
	}
}

// regex checks an expression in RE2, which is also Go's dialect.
func (c *checker) regex(at, expression string) {
	switch {
	case expression == "":
		c.errorf(at, "the regular expression is empty")
	case len(expression) > 1024:
		c.errorf(at, "the regular expression is longer than 1024 characters: shorten it")
	default:
		if _, err := regexp.Compile(expression); err != nil {
			c.errorf(at, "not a regular expression of RE2: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		}
	}
}

// network checks an IP address or a CIDR block.
func (c *checker) network(at, value string) {
	if strings.Contains(value, "/") {
		if _, err := netip.ParsePrefix(value); err != nil {
			c.errorf(at, "%q is not a CIDR block such as 10.0.0.0/8", shorten(value))
		}
	} else if ip, err := netip.ParseAddr(value); err != nil || ip.Zone() != "" {
		c.errorf(at, "%q is not an IP address or CIDR block", shorten(value))
	}
}

// selector checks the labels of a workload selector.
func (c *checker) selector(at string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		switch {
		case k == "":
			c.errorf(at, "a label without a name cannot select anything")
		case strings.Contains(k+labels[k], "*"):
			c.errorf(at+"["+k+"]", "wildcards are not supported in a selector: write the whole value")
		}
	}
}

// workloadSelector checks the selector of a kind of traffic; given says that there is
// one.
func (c *checker) workloadSelector(at, field string, given bool, labels map[string]string) {
	c.selector(at+"."+field, labels)
	if given && len(labels) == 0 {
		c.warnf(at, "without labels it is for every workload of the namespace: give labels, or remove it")
	}
}

// exportTo checks visibility as Istio does; private says that only "." may be
// given, none that "~" may.
func (c *checker) exportTo(exportTo []string, private, none bool) {
	const at = "spec.exportTo"
	seen := map[string]bool{}
	for i, e := range exportTo {
		key := e
		if e == "." {
			key = c.object.meta.Namespace
		}
		switch {
		case seen[key]:
			c.errorf(index(at, i), "%q is given twice", e)
		case e == "~" && !none, e != "*" && e != "~" && e != "." && !isLabel(e):
			c.errorf(index(at, i), "%q is not a namespace, \".\" or \"*\"", shorten(e))
		case private && key != c.object.meta.Namespace:
			c.errorf(index(at, i), "with a workloadSelector the rule cannot leave its namespace: write \".\"")
		}
		seen[key] = true
	}
	if len(exportTo) > 1 && (seen["*"] || seen["~"]) {
		c.errorf(at, "\"*\" and \"~\" stand alone: remove the other entries")
	}
}

// unixPath checks the part of an address after unix://.
func (c *checker) unixPath(at, p string) {
	if problem := c.options.socketProblem(p); problem != "" {
		c.errorf(at, "%q %s", shorten(p), problem)
	}
}

const unixPrefix = "unix://"

// protocolOf maps the name of a protocol, in any case, to ours. Not ok if the
// name is unknown.
func protocolOf(name string) (model.Protocol, bool) {
	switch strings.ToLower(name) {
	case "tcp":
		return model.TCP, true
	case "http", "http_proxy":
		return model.HTTP, true
	case "http2":
		return model.HTTP2, true
	case "grpc":
		return model.GRPC, true
	case "grpc-web":
		return model.GRPCWeb, true
	case "https":
		return model.HTTPS, true
	case "tls":
		return model.TLS, true
	case "mongo":
		return model.Mongo, true
	case "redis":
		return model.Redis, true
	case "mysql":
		return model.MySQL, true
	case "udp":
		return model.UDP, true
	}
	return model.TCP, false
}

const protocolNames = "HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, MYSQL, REDIS, UDP"

// portProtocol selects the protocol of a port as Istio does: appProtocol first,
// then <protocol> or <protocol>-<suffix> in the name; else plain TCP.
func portProtocol(name, appProtocol, transport string) model.Protocol {
	if strings.EqualFold(transport, "UDP") {
		return model.UDP
	}
	switch strings.ToLower(appProtocol) {
	case "":
	case "kubernetes.io/h2c":
		return model.HTTP2
	case "kubernetes.io/ws":
		return model.HTTP
	case "kubernetes.io/wss":
		return model.HTTPS
	default:
		p, _ := protocolOf(appProtocol)
		return p
	}
	name = strings.ToLower(name)
	if name == "grpc-web" || strings.HasPrefix(name, "grpc-web-") {
		return model.GRPCWeb
	}
	prefix, _, _ := strings.Cut(name, "-")
	p, _ := protocolOf(prefix)
	return p
}

// saysProtocol says whether a port's appProtocol, or its name without one, names a
// protocol.
func saysProtocol(name, appProtocol string) bool {
	if appProtocol != "" {
		_, known := protocolOf(appProtocol)
		return known || slices.Contains([]string{"kubernetes.io/h2c", "kubernetes.io/ws", "kubernetes.io/wss"}, strings.ToLower(appProtocol))
	}
	name = strings.ToLower(name)
	prefix, _, _ := strings.Cut(name, "-")
	_, known := protocolOf(prefix)
	return known
}
