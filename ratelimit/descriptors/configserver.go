package descriptors

import (
	"fmt"
	"strconv"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/structpb"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
)

// FromServer takes what a management server sent, each message a file. What holds for
// Load holds here: a broken domain keeps its last good version, others are taken.
func FromServer(sent []*ratelimitpb.DomainConfig, previous *Set, merge bool) (*Set, error) {
	var c collection
	for i, m := range sent {
		name := "resource " + m.GetName()
		if m.GetName() == "" {
			name = fmt.Sprintf("resource %d (domain %s)", i, m.GetDomain())
		}
		p := &parser{file: name}
		d, err := p.domain(&yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{domainNode(m)}})
		if err != nil {
			c.add(name, nil, err)
			continue
		}
		c.add(name, []*Domain{d}, nil)
	}
	return c.set(previous, merge)
}

// domainNode is a message as the YAML of a file, so that both are checked by the same
// code.
func domainNode(m *ratelimitpb.DomainConfig) *yaml.Node {
	return mapping("domain", text(m.GetDomain()), "descriptors", descriptorNodes(m.GetDescriptors(), 0))
}

func descriptorNodes(list []*ratelimitpb.DomainDescriptor, depth int) *yaml.Node {
	out := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	if depth > maxDepth+1 { // refused by the parser one level above
		return out
	}
	for _, d := range list {
		n := mapping("key", text(d.GetKey()), "value", text(d.GetValue()), "shadow_mode", boolean(d.GetShadowMode()),
			"detailed_metric", boolean(d.GetDetailedMetric()), "quota_mode", boolean(d.GetQuotaMode()))
		if l := d.GetRateLimit(); l != nil {
			n.Content = append(n.Content, text("rate_limit"), limitNode(l))
		}
		if m := d.GetMetadata(); len(m.GetFields()) > 0 {
			n.Content = append(n.Content, text("metadata"), valueNode(structpb.NewStructValue(m)))
		}
		if len(d.GetDescriptors()) > 0 {
			n.Content = append(n.Content, text("descriptors"), descriptorNodes(d.GetDescriptors(), depth+1))
		}
		out.Content = append(out.Content, n)
	}
	return out
}

func limitNode(l *ratelimitpb.DomainLimit) *yaml.Node {
	n := mapping("requests_per_unit", number(uint64(l.GetRequestsPerUnit())), "unlimited", boolean(l.GetUnlimited()), "name", text(l.GetName()))
	if u := l.GetUnit(); u != 0 {
		unit := strconv.FormatUint(uint64(u), 10)                                                      // unknown, and refused as such
		if name, known := rlsv3.RateLimitResponse_RateLimit_Unit_name[int32(u)]; known && u <= 1<<16 { //nolint:gosec // a number of no unit finds none
			unit = name
		}
		n.Content = append(n.Content, text("unit"), text(unit))
	}
	if len(l.GetReplaces()) > 0 {
		list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, r := range l.GetReplaces() {
			list.Content = append(list.Content, mapping("name", text(r.GetName())))
		}
		n.Content = append(n.Content, text("replaces"), list)
	}
	return n
}

func valueNode(v *structpb.Value) *yaml.Node {
	switch v := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return text(v.StringValue)
	case *structpb.Value_BoolValue:
		return boolean(v.BoolValue)
	case *structpb.Value_NumberValue:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!float", Value: strconv.FormatFloat(v.NumberValue, 'g', -1, 64)}
	case *structpb.Value_ListValue:
		out := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, item := range v.ListValue.GetValues() {
			out.Content = append(out.Content, valueNode(item))
		}
		return out
	case *structpb.Value_StructValue:
		out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		for key, value := range v.StructValue.GetFields() {
			out.Content = append(out.Content, text(key), valueNode(value))
		}
		return out
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
}

// mapping makes a mapping of keys, each followed by its value.
func mapping(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, p := range pairs {
		switch p := p.(type) {
		case string:
			n.Content = append(n.Content, text(p))
		case *yaml.Node:
			n.Content = append(n.Content, p)
		}
	}
	return n
}

func text(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle}
}

func boolean(b bool) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(b)}
}

func number(n uint64) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.FormatUint(n, 10)}
}
