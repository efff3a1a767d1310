package meshdir

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	meshv1 "istio.io/api/mesh/v1alpha1"
)

// TestFieldsInEffect: the tables name fields that there are.
func TestFieldsInEffect(t *testing.T) {
	for _, table := range []struct {
		of     protoreflect.MessageDescriptor
		fields []string
	}{
		{(&meshv1.MeshConfig{}).ProtoReflect().Descriptor(), meshFields},
		{(&meshv1.ProxyConfig{}).ProtoReflect().Descriptor(), proxyFields},
		{(&meshv1.MeshConfig_ExtensionProvider{}).ProtoReflect().Descriptor(), providerFields},
	} {
		for _, name := range table.fields {
			if fieldByName(table.of.Fields(), name) == nil {
				t.Errorf("%s has no field %s", table.of.FullName(), name)
			}
		}
	}
	for name := range limits {
		if d, err := protoregistry.GlobalFiles.FindDescriptorByName(name); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if _, field := d.(protoreflect.FieldDescriptor); !field {
			t.Errorf("%s is no field", name)
		}
	}
}

// TestFieldsWithoutEffect: each field of MeshConfig that is written is
// gone by, or it is told.
func TestFieldsWithoutEffect(t *testing.T) {
	for text, want := range map[string]string{
		"enableTracing: false":                                       "enableTracing",
		"accessLogFile: /dev/stdout":                                 "",
		"enable_prometheus_merge: true":                              "enablePrometheusMerge",
		"ingressClass: null":                                         "",
		"defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}":   "",
		"defaultConfig: {concurrency: 2}":                            "defaultConfig.concurrency",
		"extensionProviders: [{name: a, zipkin: {service: a.b}}]":    "extensionProviders[0].zipkin",
		"defaultProviders: {accessLogging: [envoy]}":                 "defaultProviders",
		"outboundTrafficPolicy: {mode: REGISTRY_ONLY}":               "",
		"zoneAwareLbSetting: {enabled: true}":                        "zoneAwareLbSetting",
		"verifyCertificateAtClient: false":                           "verifyCertificateAtClient",
		"defaultConfig: {tracing: {sampling: 1}, statusPort: 15020}": "defaultConfig.tracing",
	} {
		_, problems := Parse(map[string][]byte{"mesh.yaml": []byte(text)}, nil, Options{})
		switch {
		case want == "" && len(problems) > 0:
			t.Errorf("%s: %v", text, problems)
		case want != "" && (len(problems) == 0 || problems[0].Field != want || problems[0].Severity != Warning):
			t.Errorf("%s: %v, want a warning of %s", text, problems, want)
		}
	}
}

// TestProxyConfig: Istio's rules hold although nothing goes by the values.
func TestProxyConfig(t *testing.T) {
	for text, want := range map[string]string{
		"drainDuration: 500ms":                                      "drainDuration: must be whole seconds",
		"drainDuration: 0s":                                         "drainDuration: 0s is too short",
		"discoveryAddress: istiod":                                  `discoveryAddress: "istiod" is not HOST:PORT`,
		"discoveryAddress: istiod.istio-system.svc:15012":           "",
		"statsdUdpAddress: '10.0.0.1'":                              "statsdUdpAddress",
		"tracing: {zipkin: {address: '$(HOST_IP):9411'}}":           "",
		"tracing: {zipkin: {address: 'zipkin:0'}}":                  "tracing.zipkin.address",
		"tracing: {datadog: {address: 'a b:1'}}":                    "tracing.datadog.address",
		"tracing: {lightstep: {address: 'a:1'}}":                    "tracing.lightstep: needs address and accessToken",
		"tracing: {datadog: {}}":                                    "tracing.datadog.address: is missing",
		"tracing: {tlsSettings: {mode: MUTUAL}}":                    "tracing.tlsSettings: mode MUTUAL needs",
		"envoyMetricsService: {address: a}":                         "envoyMetricsService.address",
		"proxyAdminPort: 70000":                                     "proxyAdminPort: port 70000 is out of range",
		"statusPort: -1":                                            "statusPort: port 0 is out of range",
		"concurrency: -1":                                           "concurrency: -1 is negative",
		"privateKeyProvider: {}":                                    "privateKeyProvider: says nothing about the provider",
		"privateKeyProvider: {qat: {}}":                             "privateKeyProvider: needs a pollDelay",
		"privateKeyProvider: {cryptomb: {pollDelay: 1ms}}":          "",
		"connectionSettings: {httpIdleTimeout: -1s}":                "connectionSettings.httpIdleTimeout: -1s is negative",
		"connectionSettings: {httpMaxConcurrentStreams: 0}":         "connectionSettings.httpMaxConcurrentStreams: 0 is too little: at least 1",
		"connectionSettings: {http2InitialStreamWindowSize: 65534}": "connectionSettings.http2InitialStreamWindowSize: 65534 is too little: at least 65535",
	} {
		_, problems := Parse(map[string][]byte{"mesh.yaml": []byte("defaultConfig: {" + text + "}")}, nil, Options{})
		errs := Errors(problems)
		switch {
		case want == "" && len(errs) > 0:
			t.Errorf("%s: %v", text, errs)
		case want != "" && (len(errs) != 1 || !strings.HasPrefix(errs[0].Field+": "+errs[0].Message, "defaultConfig."+want)):
			t.Errorf("%s: %v, want %s", text, errs, want)
		}
	}
}
