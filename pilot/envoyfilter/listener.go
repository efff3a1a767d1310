package envoyfilter

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// The names that Istio's documentation has for the listeners of a sidecar. Where traffic is
// not intercepted they stand for all listeners of their direction.
const (
	virtualInbound  = "virtualInbound"
	virtualOutbound = "virtualOutbound"
)

const connectionManager = "envoy.filters.network.http_connection_manager"

func (a *applier) listener(m proto.Message, c *change) (kept bool) {
	l := m.(*listenerv3.Listener) //nolint:forcetypeassert // of the list of listeners
	c.context = a.contextOf(l.GetTrafficDirection() == corev3.TrafficDirection_INBOUND)
	for _, p := range a.byKind[networking.EnvoyFilter_LISTENER] {
		switch {
		case !c.holds(p) || !a.isListener(c, l, p):
		case p.operation == networking.EnvoyFilter_Patch_REMOVE:
			return false
		case merges(p):
			name := l.GetName()
			mergeInto(c, p, l)
			l.Name = name // by which pilot and Envoy speak of it
		}
	}
	filters := place[*listenerv3.ListenerFilter]{
		named: func(p *patch) bool { return p.match.GetListener().GetListenerFilter() != "" },
		is: func(p *patch, f *listenerv3.ListenerFilter) bool {
			return f.GetName() == p.match.GetListener().GetListenerFilter()
		},
		fixed: func(f *listenerv3.ListenerFilter) bool { return strings.HasPrefix(f.GetName(), ownFilter) },
		merge: func(p *patch, f *listenerv3.ListenerFilter) error {
			from := p.value.(*listenerv3.ListenerFilter) //nolint:forcetypeassert // it was read as one
			return mergeConfig(from.GetName(), from.GetTypedConfig(), &f.Name, f.GetTypedConfig())
		},
	}
	for _, p := range a.byKind[networking.EnvoyFilter_LISTENER_FILTER] {
		if c.holds(p) && a.isListener(c, l, p) && (filters.named(p) || !merges(p)) {
			l.ListenerFilters = filters.apply(c, p, l.GetListenerFilters())
		}
	}
	a.chains(c, l)
	return true
}

// isListener says that a patch means a listener.
func (a *applier) isListener(c *change, l *listenerv3.Listener, p *patch) bool {
	m := p.match.GetListener()
	if m == nil {
		return true
	}
	port := l.GetAddress().GetSocketAddress().GetPortValue()
	explicit := a.proxy.Interception != model.Redirect
	switch name := m.GetName(); {
	case name == "" || name == l.GetName():
	case explicit && name == virtualInbound && c.context == networking.EnvoyFilter_SIDECAR_INBOUND:
	case explicit && name == virtualOutbound && c.context == networking.EnvoyFilter_SIDECAR_OUTBOUND:
	case c.context == networking.EnvoyFilter_GATEWAY && name == "0.0.0.0_"+strconv.FormatUint(uint64(port), 10):
	default:
		return false
	}
	want := m.GetPortNumber()
	if want == 0 || isVirtual(l) && p.applyTo != networking.EnvoyFilter_LISTENER {
		return true
	}
	return port == want || a.proxy.GatewayPorts[want] == port && port != 0
}

// isVirtual says that one listener takes the connections of several ports.
func isVirtual(l *listenerv3.Listener) bool {
	return l.GetName() == virtualInbound || l.GetName() == virtualOutbound
}

func (a *applier) chains(c *change, l *listenerv3.Listener) {
	l.FilterChains = slices.DeleteFunc(l.GetFilterChains(), func(fc *listenerv3.FilterChain) bool { return !a.chain(c, l, fc) })
	if fc := l.GetDefaultFilterChain(); fc != nil && !a.chain(c, l, fc) {
		l.DefaultFilterChain = nil
	}
	for _, p := range a.byKind[networking.EnvoyFilter_FILTER_CHAIN] {
		if p.operation == networking.EnvoyFilter_Patch_ADD && c.holds(p) && a.isListener(c, l, p) {
			l.FilterChains = append(l.FilterChains, proto.Clone(p.value).(*listenerv3.FilterChain)) //nolint:forcetypeassert // it was read as one
			c.did(p)
		}
	}
}

func (a *applier) chain(c *change, l *listenerv3.Listener, fc *listenerv3.FilterChain) (kept bool) {
	for _, p := range a.byKind[networking.EnvoyFilter_FILTER_CHAIN] {
		switch {
		case !c.holds(p) || !a.isListener(c, l, p) || !isChain(l, fc, p):
		case p.operation == networking.EnvoyFilter_Patch_REMOVE:
			c.did(p)
			return false
		case merges(p):
			from := p.value.(*listenerv3.FilterChain) //nolint:forcetypeassert // it was read as one
			into, err := mergeSocket(fc.GetTransportSocket(), from.GetTransportSocket())
			c.fail(p, err)
			if into {
				from = proto.CloneOf(from)
				from.TransportSocket = nil
			}
			merge(fc.ProtoReflect(), from.ProtoReflect(), p.operation == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST)
			c.did(p)
		}
	}
	filters := place[*listenerv3.Filter]{
		named: func(p *patch) bool { return p.match.GetListener().GetFilterChain().GetFilter() != nil },
		is: func(p *patch, f *listenerv3.Filter) bool {
			return isFilter(p.match.GetListener().GetFilterChain().GetFilter().GetName(), f.GetName(), f.GetTypedConfig().GetTypeUrl())
		},
		fixed: func(f *listenerv3.Filter) bool { return strings.HasPrefix(f.GetName(), ownFilter) },
		merge: func(p *patch, f *listenerv3.Filter) error {
			from := p.value.(*listenerv3.Filter) //nolint:forcetypeassert // it was read as one
			return mergeConfig(from.GetName(), from.GetTypedConfig(), &f.Name, f.GetTypedConfig())
		},
	}
	for _, p := range a.byKind[networking.EnvoyFilter_NETWORK_FILTER] {
		if c.holds(p) && a.isListener(c, l, p) && isChain(l, fc, p) {
			fc.Filters = filters.apply(c, p, fc.GetFilters())
		}
	}
	for _, f := range fc.GetFilters() {
		if f.GetName() == connectionManager && a.any(networking.EnvoyFilter_HTTP_FILTER) {
			a.httpFilters(c, l, fc, f)
		}
	}
	return true
}

// isChain says that a patch, which means the listener, means a filter chain.
func isChain(l *listenerv3.Listener, fc *listenerv3.FilterChain, p *patch) bool {
	m := p.match.GetListener()
	has := fc.GetFilterChainMatch()
	if isVirtual(l) && m.GetPortNumber() > 0 && has.GetDestinationPort().GetValue() != m.GetPortNumber() {
		return false
	}
	want := m.GetFilterChain()
	port := has.GetDestinationPort().GetValue()
	if has.GetDestinationPort() == nil && !isVirtual(l) && l.GetTrafficDirection() == corev3.TrafficDirection_INBOUND {
		port = l.GetAddress().GetSocketAddress().GetPortValue() // each port has a listener of its own
	}
	switch {
	case want == nil:
		return true
	case want.GetName() != "" && want.GetName() != fc.GetName(),
		want.GetSni() != "" && !slices.Contains(has.GetServerNames(), want.GetSni()),
		want.GetTransportProtocol() != "" && has.GetTransportProtocol() != want.GetTransportProtocol(),
		want.GetDestinationPort() != 0 && port != want.GetDestinationPort():
		return false
	case want.GetApplicationProtocols() != "":
		return !slices.ContainsFunc(strings.Split(want.GetApplicationProtocols(), ","), func(name string) bool { return !slices.Contains(has.GetApplicationProtocols(), name) })
	}
	return true
}

// isFilter says that a filter is the one that is named: by its name, or, since Writ gives
// its own filters names of what they are for, by its type where the name is that of a
// filter of Envoy's, such as envoy.filters.http.jwt_authn.
func isFilter(want, name string, types ...string) bool {
	if want == name {
		return true
	}
	kind, ok := strings.CutPrefix(want, "envoy.filters.")
	return ok && strings.HasPrefix(name, ownFilter) && slices.ContainsFunc(types, func(url string) bool {
		return strings.HasPrefix(url, "type.googleapis.com/envoy.extensions.filters."+kind+".v3.")
	})
}

func (a *applier) httpFilters(c *change, l *listenerv3.Listener, fc *listenerv3.FilterChain, f *listenerv3.Filter) {
	m := new(hcmv3.HttpConnectionManager)
	if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
		c.err = fmt.Errorf("listener %s: %w", l.GetName(), err)
		return
	}
	filters := place[*hcmv3.HttpFilter]{
		named: func(p *patch) bool { return p.match.GetListener().GetFilterChain().GetFilter().GetSubFilter() != nil },
		is: func(p *patch, h *hcmv3.HttpFilter) bool {
			want := p.match.GetListener().GetFilterChain().GetFilter().GetSubFilter().GetName()
			return isFilter(want, h.GetName(), append(h.GetConfigDiscovery().GetTypeUrls(), h.GetTypedConfig().GetTypeUrl())...)
		},
		fixed: func(h *hcmv3.HttpFilter) bool { return strings.HasPrefix(h.GetName(), ownFilter) },
		merge: func(p *patch, h *hcmv3.HttpFilter) error {
			from := p.value.(*hcmv3.HttpFilter) //nolint:forcetypeassert // it was read as one
			return mergeConfig(from.GetName(), from.GetTypedConfig(), &h.Name, h.GetTypedConfig())
		},
	}
	before := len(c.by)
	changed := &change{context: c.context}
	for _, p := range a.byKind[networking.EnvoyFilter_HTTP_FILTER] {
		of := p.match.GetListener().GetFilterChain().GetFilter()
		if c.holds(p) && a.isListener(c, l, p) && isChain(l, fc, p) && (of == nil || of.GetName() == f.GetName()) {
			m.HttpFilters = filters.apply(changed, p, m.GetHttpFilters())
		}
	}
	if changed.err != nil {
		c.err = changed.err
	}
	if len(changed.by) == 0 {
		return
	}
	for _, ref := range changed.by {
		if !slices.Contains(c.by[:before], ref) {
			c.by = append(c.by, ref)
		}
	}
	f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: envoy.Any(m)}
}

// mergeConfig lays a filter's configuration over that of another one, which has to have
// one of its own; what is of another type stays.
func mergeConfig(name string, from *anypb.Any, into *string, to *anypb.Any) error {
	if to == nil {
		return nil
	}
	if from != nil {
		merged, err := mergeAny(to, from)
		if err != nil || merged == nil {
			return err
		}
		to.Value = merged.GetValue()
	}
	if name != "" {
		*into = name
	}
	return nil
}

// mergeSocket lays a transport socket over one of the same name, and says whether it did.
func mergeSocket(to, from *corev3.TransportSocket) (done bool, err error) {
	if from == nil || to == nil || to.GetName() != from.GetName() || to.GetTypedConfig() == nil || from.GetTypedConfig() == nil {
		return false, nil
	}
	merged, err := mergeAny(to.GetTypedConfig(), from.GetTypedConfig())
	if err != nil || merged == nil {
		return false, err
	}
	to.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: merged}
	return true, nil
}
