package bootstrap

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	injectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/credential_injector/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	genericv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/injected_credentials/generic/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/writ-mesh/writ/nodeagent/proxysecret"
)

// secretName is the static secret that has the proxy's.
const secretName = "writ-proxy-secret"

// proxySecret is a secret of its own, and no header in the configuration, because
// Envoy leaves secrets out of what its administration interface shows.
func proxySecret(value string) *tlsv3.Secret {
	return &tlsv3.Secret{Name: secretName, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
		Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: value}},
	}}}
}

// showSecret are the filters of a cluster that put the secret on each request
// through it: the ADS stream, and those of the secrets that pilot's configuration
// takes from the agent. What an Envoy forwards goes through other clusters.
func showSecret() ([]*hcmv3.HttpFilter, error) {
	generic, err := anypb.New(&genericv3.Generic{
		Header: proxysecret.Header, Credential: &tlsv3.SdsSecretConfig{Name: secretName},
	})
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	var filters []*hcmv3.HttpFilter
	for _, f := range []struct {
		name   string
		config proto.Message
	}{
		{"envoy.filters.http.credential_injector", &injectorv3.CredentialInjector{
			Overwrite:  true,
			Credential: &corev3.TypedExtensionConfig{Name: "envoy.http.injected_credentials.generic", TypedConfig: generic},
		}},
		{"envoy.filters.http.upstream_codec", &codecv3.UpstreamCodec{}},
	} {
		config, err := anypb.New(f.config)
		if err != nil {
			return nil, fmt.Errorf("bootstrap: %w", err)
		}
		filters = append(filters, &hcmv3.HttpFilter{Name: f.name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}})
	}
	return filters, nil
}
