/**
 * Starts Swagger UI with the server's OpenAPI document. This is a separate file because the
 * Content-Security-Policy does not allow inline scripts.
 */

/* global SwaggerUIBundle */

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  deepLinking: true,
  tryItOutEnabled: true,
  persistAuthorization: false,
  presets: [SwaggerUIBundle.presets.apis],
});
