package meshdir

import (
	"strconv"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// limit is how much a field may hold.
type limit struct {
	// least and most bound the elements of a list or a mapping; most 0 is no bound.
	least, most int
	// length bounds the characters of a text, and of each value of a list or mapping;
	// text says that none may be empty.
	length int
	text   bool
	// from and to bound a number, and each of a list; to 0 is no bound.
	from, to int
}

// limits are those of Istio's resource definitions (kubernetes/customresourcedefinitions.gen.yaml
// of istio.io/api), which a Kubernetes API server holds objects to before Istio sees
// them. What the checks of a kind bound anyway is not here.
var limits = map[protoreflect.FullName]limit{
	"istio.type.v1beta1.WorkloadSelector.match_labels":                              {most: 4096, length: 63},
	"istio.networking.v1alpha3.WorkloadSelector.labels":                             {most: 256, length: 63},
	"istio.networking.v1alpha3.TrafficPolicy.port_level_settings":                   {most: 4096},
	"istio.networking.v1alpha3.OutlierDetection.outlier_detection_http_error_codes": {from: 100, to: 599},
	"istio.networking.v1alpha3.ZoneAwareLoadBalancerSetting.min_cluster_size":       {from: 1},
	"istio.networking.v1alpha3.ServerTLSSettings.credential_names":                  {least: 1, most: 2},
	"istio.networking.v1alpha3.ServerTLSSettings.tls_certificates":                  {least: 1, most: 2},
	"istio.networking.v1alpha3.ServiceEntry.hosts":                                  {most: 256},
	"istio.networking.v1alpha3.ServiceEntry.addresses":                              {most: 256, length: 64},
	"istio.networking.v1alpha3.ServiceEntry.ports":                                  {most: 256},
	"istio.networking.v1alpha3.ServiceEntry.endpoints":                              {most: 4096},
	"istio.networking.v1alpha3.WorkloadEntry.address":                               {length: 256},
	"istio.networking.v1alpha3.WorkloadEntry.labels":                                {most: 256},
	"istio.networking.v1alpha3.WorkloadEntry.locality":                              {length: 2048},
	"istio.networking.v1alpha3.WorkloadEntry.network":                               {length: 2048},
	"istio.networking.v1alpha3.WorkloadEntry.ports":                                 {most: 128},
	"istio.networking.v1alpha3.WorkloadEntry.service_account":                       {length: 253},
	"istio.networking.v1alpha3.WorkloadGroup.ObjectMeta.labels":                     {most: 256},
	"istio.networking.v1alpha3.WorkloadGroup.ObjectMeta.annotations":                {most: 256},
	"istio.networking.v1alpha3.ExecHealthCheckConfig.command":                       {text: true},
	"istio.security.v1beta1.AuthorizationPolicy.rules":                              {most: 512},
	"istio.security.v1beta1.Rule.from":                                              {most: 512},
	"istio.security.v1beta1.RequestAuthentication.jwt_rules":                        {most: 4096},
	"istio.security.v1beta1.JWTRule.issuer":                                         {text: true},
	"istio.security.v1beta1.JWTRule.jwks_uri":                                       {length: 2048, text: true},
	"istio.security.v1beta1.JWTRule.space_delimited_claims":                         {most: 64},
	"istio.telemetry.v1alpha1.ProviderRef.name":                                     {text: true},
	"istio.telemetry.v1alpha1.Tracing.Literal.value":                                {text: true},
	"istio.telemetry.v1alpha1.Tracing.Environment.name":                             {text: true},
	"istio.telemetry.v1alpha1.Tracing.RequestHeader.name":                           {text: true},
	"istio.telemetry.v1alpha1.Tracing.Formatter.value":                              {text: true},
	"istio.telemetry.v1alpha1.MetricSelector.custom_metric":                         {text: true},
}

// limited checks a field as it is written; of what has another type than the field
// the decoder says so.
func (r *report) limited(n *yaml.Node, name protoreflect.FullName, at string) {
	l, ok := limits[name]
	if !ok {
		return
	}
	switch n.Kind {
	case yaml.SequenceNode:
		r.numbered(n, l, at, len(n.Content))
		for i, c := range n.Content {
			r.limitedValue(c, l, index(at, i))
		}
	case yaml.MappingNode:
		r.numbered(n, l, at, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			r.limitedValue(n.Content[i+1], l, at+"["+n.Content[i].Value+"]")
		}
	case yaml.ScalarNode:
		r.limitedValue(n, l, at)
	}
}

func (r *report) numbered(n *yaml.Node, l limit, at string, have int) {
	switch {
	case l.most > 0 && have > l.most:
		r.at(n, at, "%d are too many: at most %d", have, l.most)
	case have < l.least:
		r.at(n, at, "is empty: give at least %d, or remove it", l.least)
	}
}

func (r *report) limitedValue(n *yaml.Node, l limit, at string) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		return
	}
	switch length := utf8.RuneCountInString(n.Value); {
	case l.length > 0 && length > l.length:
		r.at(n, at, "%d characters are too many: at most %d", length, l.length)
	case l.text && length == 0:
		r.at(n, at, "is empty: give a value, or remove it")
	}
	v, err := strconv.Atoi(n.Value)
	switch {
	case err != nil || l.from == 0 && l.to == 0:
	case v < l.from || l.to > 0 && v > l.to:
		r.at(n, at, "%d is out of range: %s", v, l.numbers())
	}
}

func (l limit) numbers() string {
	if l.to == 0 {
		return "it must be at least " + strconv.Itoa(l.from)
	}
	return "it must be from " + strconv.Itoa(l.from) + " to " + strconv.Itoa(l.to)
}
