// Package patchvalue reads the values of EnvoyFilters' patches: what of Envoy's configuration a
// patch gives, with the types that this version of pilot knows.
package patchvalue

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
)

// kinds make an empty message of what a patch applies to.
var kinds = map[networking.EnvoyFilter_ApplyTo]func() proto.Message{
	networking.EnvoyFilter_CLUSTER:             func() proto.Message { return &clusterv3.Cluster{} },
	networking.EnvoyFilter_LISTENER:            func() proto.Message { return &listenerv3.Listener{} },
	networking.EnvoyFilter_LISTENER_FILTER:     func() proto.Message { return &listenerv3.ListenerFilter{} },
	networking.EnvoyFilter_FILTER_CHAIN:        func() proto.Message { return &listenerv3.FilterChain{} },
	networking.EnvoyFilter_NETWORK_FILTER:      func() proto.Message { return &listenerv3.Filter{} },
	networking.EnvoyFilter_HTTP_FILTER:         func() proto.Message { return &hcmv3.HttpFilter{} },
	networking.EnvoyFilter_ROUTE_CONFIGURATION: func() proto.Message { return &routev3.RouteConfiguration{} },
	networking.EnvoyFilter_VIRTUAL_HOST:        func() proto.Message { return &routev3.VirtualHost{} },
	networking.EnvoyFilter_HTTP_ROUTE:          func() proto.Message { return &routev3.Route{} },
	networking.EnvoyFilter_EXTENSION_CONFIG:    func() proto.Message { return &corev3.TypedExtensionConfig{} },
}

// Of reads what a patch gives. As in Istio a field that is not known is left out, which
// odd then says; what does not fit otherwise is an error.
func Of(applyTo networking.EnvoyFilter_ApplyTo, value *structpb.Struct) (m proto.Message, odd, err error) {
	empty, ok := kinds[applyTo]
	if !ok {
		return nil, nil, fmt.Errorf("%s is not supported", applyTo)
	}
	if value == nil {
		return nil, nil, errors.New("a value is missing")
	}
	data, err := protojson.Marshal(value)
	if err != nil {
		return nil, nil, err
	}
	m = empty()
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, m); err != nil {
		return nil, nil, plain(err)
	}
	if err := protojson.Unmarshal(data, empty()); err != nil {
		odd = plain(err)
	}
	return m, odd, nil
}

// position is a place in the JSON that the value was turned into, which nobody sees.
var position = regexp.MustCompile(` ?\(line \d+:\d+\)`)

// plain leaves out of an error of protojson what is about its input, and spaces that it
// changes from build to build.
func plain(err error) error {
	text := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto:")
	text = strings.TrimLeft(position.ReplaceAllString(text, ""), ": ")
	if before, url, ok := strings.Cut(text, "unable to resolve "); ok {
		url, _, _ = strings.Cut(url, ": ")
		return fmt.Errorf("%sthe type %s is not known to this version of pilot", before, url)
	}
	return errors.New(text)
}
